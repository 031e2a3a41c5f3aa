"""Fuzzer: reads mutated files, and holds each outcome against the laws of the reader."""

import re
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from lokr_core import Adapter, AdapterReader, LokrError
from lokr_core.spec import ModelSpec
from tests.fuzz.files import CONFIG, TENSORS, AdapterFiles
from tests.fuzz.mutators import MUTATORS

MAX_MESSAGE_CHARS = 600
MAX_SECONDS = 3.0  # of processor time, for one case
MAX_GROWTH_KIB = 300 << 10  # of the process, over a run
MAX_AMPLIFICATION = 16  # of the file's bytes, besides the base's own
COMPARE_EVERY = 8  # refusals are compared with a fresh reader's, besides all that is accepted
CHECK_EVERY = 50  # cases, after which a good file must read as before

# An earlier mutation left nothing that the next one could take apart.
_UNMADE = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError,
           ValueError)  # fmt: skip
_QUOTED = re.compile(r"""(['"])((?:(?!\1)[^\\…]|\\.)*)(?:\1|…)""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A case that broke a law, and what it takes to see it again."""

    case: int
    seed_file: str
    mutations: tuple[str, ...]
    problem: str


@dataclass(slots=True, kw_only=True)
class Report:
    """What a run saw."""

    num_cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    grown_kib: int = 0


@dataclass(slots=True, kw_only=True)
class Fuzzer:
    """Mutates files and reads them, with one reader for all and with a fresh one."""

    spec: ModelSpec
    seeds: Sequence[AdapterFiles]
    folder: Path
    seed: int = 0
    reader: AdapterReader = field(init=False)
    good: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Read the good files, to compare with later."""
        self.reader = AdapterReader(self.spec)
        self.good = {}
        for files in self.seeds:
            outcome = self._read(self.reader, files.write(self.folder))
            if isinstance(outcome, Adapter):
                self.good[files.name] = outcome.buffer

    def run(self, num_cases: int, first: int = 0) -> Report:
        """Run cases; each follows from the seed and its own number alone."""
        report = Report()
        began_at, memory = time.perf_counter(), _peak_kib()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for case in range(first, first + num_cases):
                self._run_case(case, report)
        report.seconds = time.perf_counter() - began_at
        report.num_cases = num_cases
        report.grown_kib = _peak_kib() - memory
        if report.grown_kib > MAX_GROWTH_KIB:
            problem = f"memory grew by {report.grown_kib} KiB"
            report.findings.append(Finding(case=first, seed_file="", mutations=(), problem=problem))
        return report

    def _run_case(self, case: int, report: Report) -> None:
        files, mutations = self.make(case)
        path = files.write(self.folder)
        began_at = time.process_time()
        ours = fresh = self._read(self.reader, path)
        if isinstance(ours, Adapter) or case % COMPARE_EVERY == 0:
            fresh = self._read(AdapterReader(self.spec), path)
        seconds = time.process_time() - began_at
        problem = _difference(ours, fresh) or self._broken_law(fresh, files)
        if problem is None and seconds > MAX_SECONDS:
            problem = f"took {seconds:.1f} s"
        if problem is None and case % CHECK_EVERY == 0:
            problem = self._lasting_damage(Random(case))
        report.outcomes[_name(fresh)] += 1
        if problem is not None:
            finding = Finding(case=case, seed_file=files.name, mutations=mutations, problem=problem)
            report.findings.append(finding)

    def make(self, case: int) -> tuple[AdapterFiles, tuple[str, ...]]:
        """Return the mutated files of a case, and the names of the mutations."""
        random = Random(f"{self.seed} {case}")
        files = random.choice(self.seeds)
        names = []
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            mutate = random.choice(MUTATORS)
            try:
                files = mutate(random, files, self.seeds)
            except _UNMADE:
                break
            names.append(mutate.__name__)
        return files, tuple(names)

    def _read(self, reader: AdapterReader, path: Path) -> Adapter | Exception:
        try:
            return reader.read(path, "fuzzed")
        except Exception as error:  # noqa: BLE001 - which errors come is what is looked at
            return error

    def _broken_law(self, outcome: Adapter | Exception, files: AdapterFiles) -> str | None:
        if isinstance(outcome, LokrError):
            return _bad_message(str(outcome), self.spec, files)
        if isinstance(outcome, Exception):
            return "".join(traceback.format_exception(outcome)[-4:])
        try:
            return self._bad_adapter(outcome, files)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            return "its weights: " + "".join(traceback.format_exception(error)[-4:])

    def _bad_adapter(self, adapter: Adapter, files: AdapterFiles) -> str | None:
        if not adapter.buffer.isfinite().all():
            return "the buffer is not finite"
        base_bytes = sum(p.weight.nbytes for p in self.spec.modules.values())
        if adapter.num_bytes > MAX_AMPLIFICATION * len(files.tensors) + 8 * base_bytes:
            return f"{len(files.tensors)} bytes became {adapter.num_bytes}"
        for warning in adapter.warnings:
            if not warning.isprintable():
                return f"a warning holds control characters: {warning!r}"
        for name, delta in adapter.delta_weights().items():
            if not bool(delta.isfinite().all()) and not _overflows(adapter):
                return f"the delta of {name} is not finite"
            module = self.spec.modules[name.rpartition(".")[0]].module
            if delta.shape != module.get_parameter(name.rpartition(".")[2]).shape:
                return f"the delta of {name} is {tuple(delta.shape)}"
        return None

    def _lasting_damage(self, random: Random) -> str | None:
        files = random.choice([files for files in self.seeds if files.name in self.good])
        again = self._read(self.reader, files.write(self.folder))
        if isinstance(again, Adapter) and torch.equal(again.buffer, self.good[files.name]):
            return None
        return f"afterwards {files.name} reads as {again!r}"


def _overflows(adapter: Adapter) -> bool:
    """Return whether finite factors are so large that their product need not be finite."""
    largest = float(adapter.buffer.abs().max()) * float(adapter.scales.abs().max().clamp(min=1))
    return largest > 1e6


def _difference(ours: Adapter | Exception, fresh: Adapter | Exception) -> str | None:
    """Return how a reader that has read other files differs from a fresh one."""
    if isinstance(ours, Exception) or isinstance(fresh, Exception):
        same = type(ours) is type(fresh) and str(ours) == str(fresh)
    else:
        same = ours.ref == fresh.ref and ours.info == fresh.info
        same = same and torch.equal(ours.buffer, fresh.buffer)
        same = same and torch.equal(ours.scales, fresh.scales) and ours.layout == fresh.layout
    return None if same else f"a used reader gives {ours!r}, a fresh one {fresh!r}"


def _bad_message(message: str, spec: ModelSpec, files: AdapterFiles) -> str | None:
    if not message.isprintable():
        return f"the message holds control characters: {message!r}"
    if len(message) > MAX_MESSAGE_CHARS:
        return f"the message has {len(message)} characters: {message[:200]}"
    text = files.text
    if any(name in message for name in (TENSORS, CONFIG, *spec.modules)):
        return None
    if message.startswith("peft_type: None") or f'"{message.partition(":")[0]}"' in text:
        return None  # a field; the one that must be there is named even where it is not
    if any(_unescaped(part) in text for _, part in _QUOTED.findall(message)):
        return None
    return f"the message names nothing that is there: {message}"


def _unescaped(part: str) -> str:
    return part.replace("\\'", "'").replace("\\\\", "\\")


def _name(outcome: Adapter | Exception) -> str:
    return "accepted" if isinstance(outcome, Adapter) else type(outcome).__name__


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
