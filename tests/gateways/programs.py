"""Gateways: their programs, run with the configurations of ``deploy/gateway``."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.gateways.loopback import Ports

CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "gateway"
REPLICAS_NAME = "lokr-serve-headless"
STOP_SECONDS = 30.0
READY_SECONDS = 30.0
ENVOY_FLAGS = (
    *("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
    *("--file-flush-interval-msec", "100"),
)
_COMPLAINT = re.compile(r"warn|deprecated", re.IGNORECASE)  # of what passes as valid all the same
PAUSE_SECONDS = 0.05  # between two looks at a program that starts


class Kind(Enum):
    """The gateways that there are configurations for."""

    ENVOY = "envoy"
    NGINX = "nginx"
    HAPROXY = "haproxy"

    @property
    def file_name(self) -> str:
        """Name of its configuration."""
        match self:
            case Kind.ENVOY:
                return "envoy.yaml"
            case Kind.NGINX:
                return "nginx.conf"
            case Kind.HAPROXY:
                return "haproxy.cfg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a gateway runs, and where it finds the replicas."""

    host: str
    ports: Ports
    replicas: Sequence[str]  # hosts
    names: str  # HOST:PORT of the name server that knows them, too
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway that runs."""

    kind: Kind
    address: str  # for inference
    admin_address: str
    log: Path

    def calls(self) -> list[dict[str, str]]:
        """Return what it logged of each call."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def statuses(self) -> Counter[str]:
        """Return how often it logged each gRPC status, in its own words."""
        return Counter(call["grpc_status"] for call in self.calls())


def program(kind: Kind) -> str | None:
    """Return the path of a gateway's program, or None if it is not installed."""
    beside_python = Path(sys.executable).parent  # where a Python package puts it
    return shutil.which(kind.value) or shutil.which(kind.value, path=str(beside_python))


def words(site: Site) -> dict[str, str]:
    """Return what stands for the words that the configurations say may be replaced."""
    ports = site.ports
    folder = site.folder
    return {
        "127.0.0.1": site.host,
        "0.0.0.0": site.host,
        "50051": str(ports.inference),
        "50052": str(ports.admin),
        "9090": str(ports.metrics),
        "8080": str(ports.gateway_inference),
        "8081": str(ports.gateway_admin),
        "9901": str(ports.gateway_probes),
        "9902": str(ports.gateway_internal),
        "parse-resolv-conf": f"nameserver cluster {site.names}",
        "/tmp/nginx": str(folder / "nginx"),
    }


def render(kind: Kind, site: Site) -> str:
    """Return a configuration with its words replaced, and nothing else."""
    text = (CONFIGURATIONS / kind.file_name).read_text()
    if kind is Kind.NGINX:  # which asks no name server but the machine's: a line for each replica
        text = re.sub(rf".*{REPLICAS_NAME}:.*\n", lambda line: _repeated(line[0], site), text)
    found = words(site)
    pattern = "|".join(rf"(?<![\w.]){re.escape(word)}(?!\w)" for word in found)
    return re.sub(pattern, lambda match: found[match[0]], text)


def _repeated(line: str, site: Site) -> str:
    return "".join(line.replace(REPLICAS_NAME, host) for host in site.replicas)


def _name_server(site: Site) -> str:
    """Return what Envoy is told on its command line, beside the file: whom to ask for names."""
    host, _, port = site.names.rpartition(":")
    kind = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3"
    resolver = {
        "@type": f"{kind}.CaresDnsResolverConfig",
        "resolvers": [{"socket_address": {"address": host, "port_value": int(port)}}],
        "dns_resolver_options": {"no_default_search_domain": True},
    }
    named = {"name": "envoy.network.dns_resolver.cares", "typed_config": resolver}
    return json.dumps({"typed_dns_resolver_config": named})


def _commands(kind: Kind, site: Site, file: Path) -> tuple[list[str], list[str]]:
    """Return the command that checks a configuration, and the one that runs it."""
    match kind:
        case Kind.ENVOY:
            command = ["-c", str(file), "--config-yaml", _name_server(site), *ENVOY_FLAGS]
            return ["--mode", "validate", *command], command
        case Kind.NGINX:
            command = ["-e", "stderr", "-c", str(file)]
            return ["-t", *command], command
        case Kind.HAPROXY:
            return ["-c", "-f", str(file)], ["-W", "-db", "-f", str(file)]


@contextmanager
def running_gateway(
    kind: Kind, site: Site, change: Callable[[str], str] = lambda text: text
) -> Iterator[Gateway]:
    """Check a gateway's configuration, and run it until the block ends.

    Args:
        kind: Which gateway.
        site: Where it runs.
        change: What is done to the configuration before, beside replacing words.
    """
    path = program(kind)
    assert path is not None, f"{kind.value} is not installed"
    file = site.folder / kind.file_name
    file.write_text(change(render(kind, site)))
    check, command = _commands(kind, site, file)
    checked = subprocess.run([path, *check], check=False, text=True, capture_output=True)
    said = checked.stdout + checked.stderr
    assert checked.returncode == 0, said[:3000]
    assert not _COMPLAINT.search(said), said
    log = site.folder / f"{kind.value}.log"
    with log.open("a") as out, subprocess.Popen([path, *command], stdout=out, stderr=out) as run:
        try:
            _wait_ready(site, log)
            yield Gateway(
                kind=kind,
                address=f"{site.host}:{site.ports.gateway_inference}",
                admin_address=f"{site.host}:{site.ports.gateway_admin}",
                log=log,
            )
        finally:
            run.terminate()
            run.wait(STOP_SECONDS)


def _wait_ready(site: Site, log: Path) -> None:
    url = f"http://{site.host}:{site.ports.gateway_probes}/ready"
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with suppress(URLError, ConnectionError), urlopen(url, timeout=1):
            return
        time.sleep(PAUSE_SECONDS)
    raise TimeoutError(log.read_text())
