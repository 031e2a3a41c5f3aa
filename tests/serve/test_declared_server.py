"""Declared adapters, on whole servers: readiness, changes as Kubernetes makes them, restarts."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from lokr_serve.app import Addresses
from lokr_serve.client import (
    FailedPreconditionError,
    Health,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from lokr_serve.config import Settings
from lokr_serve.errors import ManifestError, SettingsError
from lokr_serve.types import (
    AdapterState,
    AdapterStatus,
    AdapterWeight,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    Started,
    TextPrompt,
)
from tests.serve.adapters.manifest.declaring import Entry, entry, write_manifest
from tests.serve.running import (
    Connection,
    RunningServer,
    connected,
    running_server,
    tiny_settings,
)
from tests.serve.test_app import free_address
from tests.serve.test_lame_duck import readyz

DEADLINE_SECONDS = 30


class ConfigMapVolume:
    """A folder whose files change all at once, as those of a mounted ConfigMap do."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._num_versions = 0
        self.manifest = root / "manifest.yaml"
        self.manifest.symlink_to("..data/manifest.yaml")

    def publish(self, *entries: Entry) -> None:
        """Swap in a new version, and remove the old one."""
        self._num_versions += 1
        name = f"..2026_11_22_{self._num_versions}"
        (self._root / name).mkdir()
        write_manifest(self._root / name / "manifest.yaml", *entries)
        link = self._root / "..data_tmp"
        link.symlink_to(name)
        link.rename(self._root / "..data")
        for old in self._root.glob("..2026*"):
            if old.name != name:
                shutil.rmtree(old)


@pytest.fixture
def volume(tmp_path: Path) -> ConfigMapVolume:
    """A mounted ConfigMap with nothing in it yet."""
    (tmp_path / "volume").mkdir()
    return ConfigMapVolume(tmp_path / "volume")


def declared_settings(
    model_folder: Path, adapter_folder: Path, manifest: Path, **server: object
) -> Settings:
    """Return settings of a server that is held to a manifest."""
    adapters = {"manifest": manifest, "manifest_seconds": 0.05, "retry_seconds": 0.05}
    return tiny_settings(model_folder, adapter_folder, adapters=adapters, server=server)


@contextmanager
def started(settings: Settings) -> Iterator[tuple[RunningServer, Connection]]:
    """Start a server that need not become ready, and connect to it."""
    addresses = Addresses(
        listen=free_address(), admin_listen=free_address(), metrics_listen=free_address()
    )
    server_settings = settings.server.model_copy(
        update={
            "listen": addresses.listen,
            "admin_listen": addresses.admin_listen,
            "metrics_listen": addresses.metrics_listen,
        }
    )
    server = RunningServer(settings=settings.model_copy(update={"server": server_settings}))
    server.start()
    try:
        with connected(addresses) as connection:
            yield server, connection
    finally:
        if not server.ended.done():
            server.stop()
        server.ended.result(DEADLINE_SECONDS)


def until(holds: Callable[[], bool]) -> None:
    """Wait for what a server does by itself."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listed(connection: Connection) -> dict[str, AdapterStatus]:
    """Return the registered adapters by id; none while the model is loaded."""
    try:
        return {status.adapter_id: status for status in connection.admin.list_adapters()}
    except UnavailableError:
        return {}


def generation(*names: str) -> GenerationRequest:
    """Return a short request for a mix of adapters by these names."""
    return GenerationRequest(
        prompt=TextPrompt(text="x"),
        adapters=tuple(AdapterWeight(adapter_id=name) for name in names),
        sampling=SamplingParams(max_tokens=2),
    )


def start_of(connection: Connection, *names: str) -> Started:
    """Run a request and return how it began."""
    return connection.client.generate_once(generation(*names)).started


def test_a_server_is_ready_when_its_declared_adapters_are_loaded(
    model_folder: Path, adapter_folder: Path, volume: ConfigMapVolume, tmp_path: Path
) -> None:
    """A rollout stops at a replica that cannot hold what it must; an operator can see why."""
    folder = tmp_path / "adapters"
    shutil.copytree(adapter_folder / "poet", folder / "poet")
    volume.publish(entry("poet"), entry("late"))
    settings = declared_settings(model_folder, folder, volume.manifest)
    with (
        started(settings) as (server, connection),
        grpc.insecure_channel(connection.addresses.listen) as channel,
    ):
        until(lambda: "late" in listed(connection))
        until(lambda: listed(connection)["late"].state is AdapterState.FAILED)
        until(lambda: listed(connection)["poet"].state is AdapterState.READY)
        late = connection.client.get_adapter("late")
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        before = [
            next(watch).status == HealthCheckResponse.SERVING,
            connection.client.health("readiness") is Health.SERVING,
            connection.client.health("lokr_serve.v1.TextService") is Health.SERVING,
            readyz(connection.addresses.metrics_listen) == 200,
            server.ready.done(),
        ]
        liveness = connection.client.health("liveness")
        served = start_of(connection, "poet").mix_name
        shutil.copytree(adapter_folder / "pirate", folder / "late")
        server.ready.result(DEADLINE_SECONDS)

        assert before == [False] * 5
        assert (liveness, served) == (Health.SERVING, "poet")  # who calls all the same is served
        assert late.error is not None
        assert "does not exist" in late.error.message
        assert next(watch).status == HealthCheckResponse.SERVING
        assert readyz(connection.addresses.metrics_listen) == 200
        volume.publish(entry("poet"), entry("late"), entry("never"))
        until(lambda: "never" in listed(connection))
        until(lambda: listed(connection)["never"].state is AdapterState.FAILED)
        assert connection.client.health() is Health.SERVING  # readiness is not taken back


def test_a_server_that_waits_for_an_adapter_can_be_stopped(
    model_folder: Path, adapter_folder: Path, volume: ConfigMapVolume
) -> None:
    """Nobody was sent to it, so it need not wait for anybody to go."""
    volume.publish(entry("never"))
    settings = declared_settings(
        model_folder, adapter_folder, volume.manifest, lame_duck_seconds=600.0
    )
    with started(settings) as (server, connection):
        until(lambda: "never" in listed(connection))
        server.stop()
        server.ended.result(DEADLINE_SECONDS)

        assert not server.ready.done()


def test_a_mounted_manifest_is_followed_and_found_again_after_a_restart(
    model_folder: Path, adapter_folder: Path, volume: ConfigMapVolume
) -> None:
    """The state of a replica is its manifest, and nothing that it has to remember."""
    volume.publish(entry("team/poet", "poet", aliases=["best"]), entry("lyco", "lyco.safetensors"))
    settings = declared_settings(model_folder, adapter_folder, volume.manifest)
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        before = start_of(connection, "best")
        volume.publish(
            entry("team/pirate", "pirate", aliases=["best"], pinned=True, ttl_seconds=900)
        )
        until(lambda: "team/poet" not in listed(connection))
        changed = listed(connection)
        after = start_of(connection, "best")
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        restarted = listed(connection)
        again = start_of(connection, "best")

    assert [before.mix_name, after.mix_name, again.mix_name] == [
        "team/poet",
        "team/pirate",
        "team/pirate",
    ]
    pirate = restarted["team/pirate"]
    assert (pirate.is_declared, pirate.pinned, pirate.ttl_seconds) == (True, True, 900)
    assert pirate.aliases == ("best",)
    declared = {name for name, status in restarted.items() if status.is_declared}
    assert declared == {name for name, status in changed.items() if status.is_declared}
    assert {name: status.version for name, status in restarted.items() if status.version} == {
        "team/pirate": after.adapters[0].version
    }


def test_a_manifest_that_turns_bad_or_goes_away_changes_nothing(
    model_folder: Path, adapter_folder: Path, volume: ConfigMapVolume
) -> None:
    """A mistake in a file must not drain adapters that serve."""
    volume.publish(entry("poet"))
    settings = declared_settings(model_folder, adapter_folder, volume.manifest)
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        metrics = server.ready.result().metrics_listen
        volume.publish(entry("poet"), entry("poet"))
        until(lambda: "lokr_serve_manifest_good 0.0" in scrape(metrics))
        volume.manifest.unlink()
        until(lambda: "lokr_serve_manifest_errors_total 2.0" in scrape(metrics))
        status = listed(connection)["poet"]
        write_manifest(volume.manifest, entry("pirate"))
        until(lambda: "lokr_serve_manifest_good 1.0" in scrape(metrics))
        until(lambda: listed(connection)["pirate"].is_declared)

    assert (status.is_declared, status.state) == (True, AdapterState.READY)


def scrape(address: str) -> str:
    """Return the metrics."""
    with urlopen(f"http://{address}/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
        return text


def test_requests_by_alias_and_changes_by_hand(
    model_folder: Path, adapter_folder: Path, volume: ConfigMapVolume
) -> None:
    """What callers of the wire see of it."""
    volume.publish(entry("poet", aliases=["best"]))
    settings = declared_settings(model_folder, adapter_folder, volume.manifest)
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        first = start_of(connection, "best")
        shown = connection.client.get_adapter("best")
        with pytest.raises(InvalidArgumentError, match="'poet' and 'best' are both 'poet'"):
            start_of(connection, "best", "poet")
        with pytest.raises(NotFoundError):
            start_of(connection, "worst")
        refusals = []
        for change in (
            lambda: connection.admin.unload_adapter("poet", force=True),
            lambda: connection.admin.update_adapter("best", pinned=True),
            lambda: connection.admin.load_adapter(
                LoadSpec(adapter_id="poet", source="pirate", replace=True)
            ),
        ):
            with pytest.raises(FailedPreconditionError) as caught:
                change()
            refusals.append(caught.value.reason)

    assert [adapter.adapter_id for adapter in first.adapters] == ["poet"]
    assert first.mix_name == "poet"
    assert (shown.adapter_id, shown.aliases) == ("poet", ("best",))
    assert refusals == ["ADAPTER_DECLARED"] * 3


def test_a_manifest_that_is_wrong_at_the_start_stops_it(
    model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    """There is no last good state yet, and a mistake is best seen before the model is loaded."""
    path = tmp_path / "manifest.yaml"
    settings = declared_settings(model_folder, adapter_folder, path)
    with pytest.raises(SettingsError, match="is no file"), running_server(settings):
        pass
    write_manifest(path, entry("poet", pined=True))
    with pytest.raises(ManifestError, match=r"adapters\[0\] \('poet'\)"), running_server(settings):
        pass
