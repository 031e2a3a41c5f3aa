"""A real Prometheus, with the configuration of ``deploy`` but for where its targets are."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.deploy.programs import DEPLOY, require

INTERVAL = "500ms"  # of scrapes and of rules
ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """A server that scrapes."""

    address: str

    def query(self, expression: str) -> list[float]:
        """Return the values of an instant query's result, one for each series."""
        data = self._get("query", query=expression)
        return [float(each["value"][1]) for each in data["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules, with their health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://{self.address}/api/v1/{what}?{urlencode(parameters)}"
        with urlopen(url, timeout=ANSWER_SECONDS) as answer:
            data: dict[str, Any] = json.load(answer)["data"]
        return data


@contextmanager
def scraping(targets: Sequence[str], folder: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes ``targets``; what it writes goes to ``folder``."""
    program = require("prometheus")
    with subprocess.Popen(
        [
            program,
            f"--config.file={_configuration(targets, folder)}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--web.listen-address=127.0.0.1:0",
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Prometheus(address=_address(process))
        finally:
            process.kill()


def _configuration(targets: Sequence[str], folder: Path) -> Path:
    configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    configuration["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    (folder / "rules.yaml").write_text((DEPLOY / "prometheus" / "rules.yaml").read_text())
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration))
    return file


def _address(process: "subprocess.Popen[str]") -> str:
    """Read the log until it says where it listens, and until it is ready."""
    assert process.stderr is not None
    address, lines = None, []
    for line in process.stderr:
        lines.append(line)
        if 'msg="Listening on"' in line:
            address = line.rpartition("address=")[2].strip()
        if "Server is ready" in line and address is not None:
            return address
    raise AssertionError("".join(lines))
