"""Which adapters are here, as inference gateways read it: one series."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterActivity:
    """Which adapters an inference gateway should think of as here, and how many fit."""

    max_adapters: int
    resident: Iterable[str]
    waiting: Iterable[str]


class ActivityCollector(Collector):
    """Renders the one ``lora_requests_info`` series that gateways read; its value is the time."""

    def __init__(self, read: Callable[[], AdapterActivity]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the family with exactly one series."""
        activity = self._read()
        family = GaugeMetricFamily(
            "lokr_serve_lora_requests_info",
            "Adapters resident and waited for; the value is the Unix time of this reading.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        labels = (
            str(activity.max_adapters),
            ",".join(activity.resident),
            ",".join(activity.waiting),
        )
        family.add_metric(labels, time.time())
        yield family
