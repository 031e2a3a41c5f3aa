"""Adapters come, go and are merged in other threads while forwards run."""

import contextlib
import random
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from lokr_core import AdapterInUseError, AdapterMix, AdapterNotAddedError, MergeBudgetError, attach
from lokr_core.adapted import ApplyWord
from tests.core.factors import FORMS, assert_close, draw, make_base, random_adapter


def run_all(*tasks: Callable[[], None]) -> list[BaseException]:
    """Run tasks in threads at once, and return what they raised."""
    errors: list[BaseException] = []

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 (a thread's errors are lost otherwise)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


class Stage:
    """An attached base with ten adapters, of which seven come and go."""

    def __init__(self) -> None:
        self.model = make_base()
        self.adapted = attach(self.model, merge_cache_bytes=20_000, bank_bytes=20_000)
        self.adapters = [
            random_adapter(self.adapted.spec, f"a{n}", FORMS[n % 7], seed=n) for n in range(10)
        ]
        for adapter in self.adapters:
            self.adapted.add(adapter)
        self.mixes = [AdapterMix.of({adapter: 0.5}) for adapter in self.adapters]
        self.x = draw(2, 12, seed=0)
        self.wanted = [self.run(mix) for mix in self.mixes]
        self.is_over = threading.Event()

    def run(self, *mixes: AdapterMix, apply: ApplyWord = "unmerged") -> Tensor:
        """Return the model's output."""
        with self.adapted.using(mixes[0] if len(mixes) == 1 else mixes, apply=apply):
            out: Tensor = self.model(self.x)
        return out

    def churn(self) -> None:
        """Remove and add adapters until all is over."""
        draws = random.Random(1)
        while not self.is_over.is_set():
            adapter = draws.choice(self.adapters[:7])
            with contextlib.suppress(AdapterInUseError):
                self.adapted.remove(adapter.ref)
            self.adapted.add(adapter)

    def merge(self) -> None:
        """Merge mixes until all is over."""
        draws = random.Random(2)
        while not self.is_over.is_set():
            mix = draws.choice(self.mixes)
            with contextlib.suppress(AdapterNotAddedError, MergeBudgetError):
                self.adapted.merges.put(mix, self.adapted.merge(mix))
                self.adapted.merges.release(mix)

    def forwards(self) -> None:
        """Run two mixes at a time, and check every answer that there is."""
        draws, num_answers = random.Random(3), 0
        try:
            for _ in range(150):
                one, other = draws.randrange(10), draws.randrange(10)
                with contextlib.suppress(AdapterNotAddedError):
                    found = self.run(self.mixes[one], self.mixes[other], apply="auto")
                    num_answers += 1
                    assert_close(found, torch.stack([self.wanted[one][0], self.wanted[other][1]]))
        finally:
            self.is_over.set()
        assert num_answers > 15


def test_answers_stay_right_while_adapters_come_and_go() -> None:
    """A forward holds its adapters; what others add, remove and merge does not show in it."""
    stage = Stage()

    errors = run_all(stage.churn, stage.merge, stage.forwards)

    assert errors == []
