"""Stage: a model, adapters, replicas and gateways, all in one folder."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.gateways.loopback import Loopback
from tests.gateways.names import name_server
from tests.gateways.programs import Gateway, Kind, Site, running_gateway
from tests.gateways.replicas import Fleet, Place, running_fleet
from tests.tiny import peft_lokr, save_model, tiny_llama, tiny_tokenizer

ADAPTER_IDS = tuple(f"adapter-{number:02}" for number in range(24))
MAX_POSITIONS = 8192  # so that a stream lasts as long as a test needs it
_FIRST_GATEWAY_HOST = 100


def write_place(folder: Path) -> Place:
    """Write a tiny model, and many adapters of the same content."""
    place = Place(model=folder / "model", adapters=folder / "adapters", logs=folder)
    model = tiny_llama(max_position_embeddings=MAX_POSITIONS)
    save_model(place.model, model, tiny_tokenizer())
    first = peft_lokr(tiny_llama, place.adapters / ADAPTER_IDS[0])
    for adapter_id in ADAPTER_IDS[1:]:
        shutil.copytree(first, place.adapters / adapter_id)
    return place


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Replicas that run, and room for gateways before them."""

    folder: Path
    loopback: Loopback
    fleet: Fleet

    @contextmanager
    def gateway(self, kind: Kind, number: int, hosts: Sequence[str]) -> Iterator[Gateway]:
        """Run a gateway before replicas on these hosts; the number is its own on the stage."""
        host = self.loopback.host(_FIRST_GATEWAY_HOST + number)
        folder = self.folder / f"gateway-{number}"
        folder.mkdir()
        with name_server(host, hosts) as names:
            site = Site(
                host=host,
                ports=self.fleet.ports,
                replicas=hosts,
                names=names.address,
                folder=folder,
            )
            with running_gateway(kind, site) as gateway:
                yield gateway


@contextmanager
def running_stage(folder: Path) -> Iterator[Stage]:
    """Run the replicas."""
    loopback = Loopback()
    with running_fleet(loopback, write_place(folder)) as fleet:
        yield Stage(folder=folder, loopback=loopback, fleet=fleet)
