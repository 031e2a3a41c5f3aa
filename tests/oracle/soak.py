"""Soak: thousands of swaps, after which the base model must be what it was, bit for bit.

``python -m tests.oracle.soak --swaps 10000`` shows its progress on a terminal and prints one line
of JSON for each architecture.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from lokr_core import Adapted, AdapterMix, AdapterRef, attach, read_adapter
from lokr_core.adapted import ApplyWord
from tests.oracle.peers import ARCHITECTURES, AdapterFile, Architecture, Peers
from tests.tiny import VOCAB_SIZE

MERGED_MODELS = 3  # what the merge cache has room for, in models
BANK_BYTES = 100_000  # a few adapters
MAX_BATCH = 6
MAX_TOKENS = 5
DETACH = "detach and attach"
DETACH_SHARE = 0.03  # of the swaps; each begins without adapters


@dataclass(slots=True, kw_only=True)
class SoakReport:
    """What was done, and what was checked after it."""

    architecture: str
    digest_before: str
    digest_after: str = ""
    swaps: dict[str, int] = field(default_factory=dict)  # by kind
    num_base_checks: int = 0  # the base mix on the attached model, the plain model when detached
    num_row_checks: int = 0  # base rows of mixed batches
    differences: list[str] = field(default_factory=list)

    @property
    def has_passed(self) -> bool:
        """Whether nothing has changed the base."""
        return self.digest_before == self.digest_after and not self.differences


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Added:
    """A version of an adapter that the model has."""

    ref: AdapterRef
    file: AdapterFile


def weights_digest(model: nn.Module) -> str:
    """Return a SHA-256 over the names, shapes, dtypes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Soak:
    """Swaps adapters on one model in every way there is, and compares the base after each."""

    def __init__(self, architecture: Architecture, folder: Path, seed: int) -> None:
        self._draws = random.Random(seed)
        self._peers = Peers(architecture, folder, torch.float32)
        self.model: nn.Module = architecture.make_model(torch.float32)
        self._probe = self._ids(2)
        self._wanted = self._logits(self._probe)
        self.report = SoakReport(
            architecture=architecture.name, digest_before=weights_digest(self.model)
        )
        self._kinds: dict[str, Callable[[], None]] = {
            "add": self._add,
            "remove": self._remove,
            "replace": self._replace,
            "merge": self._merge,
            "drop": self._drop,
            "use unmerged": lambda: self._use("unmerged"),
            "use merged": lambda: self._use("merged"),
            "use auto": lambda: self._use("auto"),
            DETACH: self._detach,
        }
        self._added: dict[str, Added] = {}  # by adapter id
        self._adapted = self._attach()

    def swap(self) -> None:
        """Do one swap of a random kind, and check the base."""
        kind = self._draw_kind() if self._added else "add"
        self._kinds[kind]()
        self.report.swaps[kind] = self.report.swaps.get(kind, 0) + 1
        with self._adapted.using(AdapterMix()):
            self._check_base(f"after {kind!r}")

    def _draw_kind(self) -> str:
        common = [kind for kind in self._kinds if kind != DETACH]
        return DETACH if self._draws.random() < DETACH_SHARE else self._draws.choice(common)

    def finish(self) -> SoakReport:
        """Detach, and return the report."""
        self._adapted.detach()
        self._check_base("when detached")
        self.report.digest_after = weights_digest(self.model)
        return self.report

    def _check_base(self, when: str) -> None:
        self.report.num_base_checks += 1
        if not torch.equal(self._logits(self._probe), self._wanted):
            self.report.differences.append(f"the base answers differently {when}")

    def _ids(self, num_rows: int) -> Tensor:
        num_tokens = self._draws.randint(1, MAX_TOKENS)
        ids = self._draws.choices(range(VOCAB_SIZE), k=num_rows * num_tokens)
        return torch.tensor(ids).view(num_rows, num_tokens)

    @torch.no_grad()
    def _logits(self, token_ids: Tensor) -> Tensor:
        out: Tensor = self.model(token_ids).logits
        return out

    def _attach(self) -> Adapted:
        num_bytes = sum(parameter.nbytes for parameter in self.model.parameters())
        return attach(
            self.model, merge_cache_bytes=MERGED_MODELS * num_bytes, bank_bytes=BANK_BYTES
        )

    def _add(self) -> None:
        """Add an adapter that is not there, or one once more, which changes nothing."""
        absent = [name for name in self._peers.files if name not in self._added]
        adapter_id = self._draws.choice(absent or list(self._added))
        file = self._draws.choice(self._peers.files[adapter_id])
        if adapter_id in self._added:
            file = self._added[adapter_id].file
        self._added[adapter_id] = self._load(file)

    def _load(self, file: AdapterFile) -> Added:
        path = self._peers.folder / file.source
        adapter = read_adapter(path, self._adapted.spec, file.adapter_id)
        self._adapted.add(adapter)
        return Added(ref=adapter.ref, file=file)

    def _remove(self) -> None:
        adapter_id = self._draws.choice(list(self._added))
        self._adapted.remove(self._added.pop(adapter_id).ref)

    def _replace(self) -> None:
        """Let both versions be there for a moment, as a server does."""
        adapter_id = self._draws.choice(list(self._added))
        old = self._added[adapter_id]
        others = [file for file in self._peers.files[adapter_id] if file is not old.file]
        self._added[adapter_id] = self._load(self._draws.choice(others))
        self._adapted.remove(old.ref)

    def _mix(self) -> AdapterMix:
        num_parts = self._draws.randint(1, min(3, len(self._added)))
        parts = self._draws.sample(list(self._added.values()), num_parts)
        return AdapterMix.of({part.ref: self._draws.choice([1.0, 0.5, -0.7]) for part in parts})

    def _merge(self) -> None:
        mix = self._mix()
        self._adapted.merges.put(mix, self._adapted.merge(mix))
        self._adapted.merges.release(mix)

    def _drop(self) -> None:
        self._adapted.merges.discard_adapter(self._draws.choice(list(self._added.values())).ref)

    def _use(self, apply: ApplyWord) -> None:
        """Run a batch of mixed rows; unmerged, its base rows must not notice the others."""
        shared = [self._mix() for _ in range(2)]
        num_rows = self._draws.randint(2, MAX_BATCH)
        mixes = [self._draws.choice([AdapterMix(), *shared]) for _ in range(num_rows)]
        token_ids = self._ids(num_rows)
        with self._adapted.using(AdapterMix()):
            all_base = self._logits(token_ids)
        with self._adapted.using(mixes, apply=apply):
            found = self._logits(token_ids)
        for row, mix in enumerate(mixes):
            if mix.is_base and apply == "unmerged":
                self.report.num_row_checks += 1
                if not torch.equal(found[row], all_base[row]):
                    self.report.differences.append(f"a base row differs beside {shared}")

    def _detach(self) -> None:
        self._adapted.detach()
        self._check_base("when detached")
        self._adapted = self._attach()
        self._added.clear()


def soak(architecture: Architecture, folder: Path, *, num_swaps: int, seed: int) -> SoakReport:
    """Swap so many times, with a bar of progress on a terminal."""
    run = Soak(architecture, folder, seed)
    console = Console(stderr=True)
    steps = track(
        range(num_swaps),
        description=architecture.name,
        console=console,
        disable=not console.is_terminal,
    )
    for _ in steps:
        run.swap()
    return run.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line of JSON for each architecture; 0 if all of them passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.soak", description=__doc__)
    parser.add_argument("--swaps", type=int, default=10_000, help="over all architectures")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    has_passed = True
    for index, architecture in enumerate(ARCHITECTURES):
        began_at = time.monotonic()
        num_swaps = len(range(index, given.swaps, len(ARCHITECTURES)))
        with TemporaryDirectory() as folder:
            report = soak(architecture, Path(folder), num_swaps=num_swaps, seed=given.seed)
        seconds = round(time.monotonic() - began_at, 1)
        line = {"passed": report.has_passed, "seconds": seconds, "num_swaps": num_swaps}
        sys.stdout.write(json.dumps(line | asdict(report)) + "\n")
        sys.stdout.flush()
        has_passed = has_passed and report.has_passed
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())
