"""How a mix is applied when the request leaves the choice: counted cost against recent traffic.

Everything is counted in multiply-adds. Reading a byte of weights is worth as many of them as the
device computes in the time of the read, which is what makes merging cost something: a step in
which other rows are present must read the merged weights beside the base's.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from lokr_core import AdapterMix, MixCost

# Multiply-adds in the time of reading one byte. CPU: one core of a server, 27 G/s in float32
# products of 256 rows against 16 GB/s. CUDA: an H200, 495 T/s in bfloat16 against 4.8 TB/s.
CPU_MACS_PER_BYTE = 2.0
CUDA_MACS_PER_BYTE = 100.0

# Passes over the merged weights that a merge makes: read the base, write and read the delta in
# float32, write the sum, and measure its rounding.
MERGE_PASSES = 5

HALF_LIFE_SECONDS = 60.0  # of the memory for traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much one request computes; what is not told is the decoding of a text."""

    rows_per_step: float = 1.0  # as MixCost counts them: tokens, or positions of an image
    num_steps: int = 256  # the default of max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests of the recent past, and now; those of the past are taken to be like the new one."""

    num_recent: float  # requests for this mix, decayed, with the one to decide on
    num_recent_total: float  # requests for any mix or the base
    num_running: int  # requests in flight, with the one to decide on
    workload: Workload = Workload()


def row_gain(cost: MixCost, traffic: Traffic, macs_per_byte: float) -> float:
    """Return the multiply-adds that each row saves when its mix is applied merged.

    A merged row saves the factored deltas. If other rows run in the same step, the rows of the
    mix together pay for one more read of the weights.
    """
    share = traffic.num_recent / traffic.num_recent_total
    chance_of_others = 1.0 - math.pow(share, traffic.num_running - 1)
    rows_of_mix = max(1.0, share * traffic.num_running) * traffic.workload.rows_per_step
    read_macs = cost.merged_bytes * macs_per_byte
    return cost.unmerged_macs - chance_of_others * read_macs / rows_of_mix


def is_worth_merging(cost: MixCost, traffic: Traffic, macs_per_byte: float) -> bool:
    """Whether as many requests as came of late would win back what merging costs."""
    merge_macs = cost.merge_macs + MERGE_PASSES * cost.merged_bytes * macs_per_byte
    rows = traffic.num_recent * traffic.workload.rows_per_step * traffic.workload.num_steps
    return rows * row_gain(cost, traffic, macs_per_byte) > merge_macs


@dataclass(slots=True)
class _Decaying:
    """A count that halves every HALF_LIFE_SECONDS."""

    count: float = 0.0
    at: float = -math.inf

    def add(self, now: float) -> float:
        self.count = self.count * 0.5 ** ((now - self.at) / HALF_LIFE_SECONDS) + 1
        self.at = now
        return self.count


class TrafficCounter:
    """Recent requests by mix; beyond ``max_mixes`` the mix unseen for longest is forgotten."""

    def __init__(self, max_mixes: int = 4096) -> None:
        self._max_mixes = max_mixes
        self._mixes: OrderedDict[AdapterMix, _Decaying] = OrderedDict()
        self._total = _Decaying()

    def count(
        self, mix: AdapterMix, *, now: float, num_running: int, workload: Workload | None = None
    ) -> Traffic:
        """Count one request and return the traffic with it.

        Args:
            mix: What the request asks for.
            now: A monotonic time in seconds.
            num_running: Requests in flight, with this one.
            workload: Of the request; the decoding of a text, if it is None.
        """
        recent = self._mixes.setdefault(mix, _Decaying())
        self._mixes.move_to_end(mix)
        if len(self._mixes) > self._max_mixes:
            self._mixes.popitem(last=False)
        return Traffic(
            num_recent=recent.add(now),
            num_recent_total=self._total.add(now),
            num_running=num_running,
            workload=workload or Workload(),
        )
