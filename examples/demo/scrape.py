"""What the server's metrics say."""

import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """The samples of one reading, by name; those of different labels are added up."""

    samples: dict[str, float]
    rows: dict[str, float]  # sequence steps by way of application

    def mean(self, histogram: str) -> float:
        """Return the mean of a histogram's observations, 0 without any."""
        count = self.samples[f"{histogram}_count"]
        return self.samples[f"{histogram}_sum"] / count if count else 0.0


def scrape(url: str) -> Scrape:
    """Read the metrics at ``url``."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as reply:
        text = reply.read().decode()
    samples: dict[str, float] = {}
    rows: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
            if sample.name == "lokr_serve_rows_total":
                rows[sample.labels["apply"]] = sample.value
    return Scrape(samples=samples, rows=rows)
