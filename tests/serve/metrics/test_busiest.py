"""The counter per adapter: few series, each a counter, and no request lost or counted twice."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.metrics import OTHER, BusiestCounter

SCRAPE = "scrape"  # among the names of adapters, a look at the counter


def make_counter(max_series: int = 2) -> BusiestCounter:
    """Return a counter with few series."""
    return BusiestCounter("requests", "Requests.", max_series)


def scrape(counter: BusiestCounter) -> Mapping[str, float]:
    """Return what each series shows."""
    (family,) = counter.collect()
    return {sample.labels["adapter_id"]: sample.value for sample in family.samples}


def count(counter: BusiestCounter, adapters: str) -> None:
    """Count one request for each letter."""
    for adapter_id in adapters:
        counter.add(adapter_id)


def test_the_first_adapters_have_their_series_at_once() -> None:
    """A server with few adapters shows all of them, from the first request."""
    counter = make_counter()
    count(counter, "abbc")

    assert scrape(counter) == {"a": 1, "b": 2, OTHER: 1}


def test_a_busier_adapter_takes_the_place_of_the_least_busy() -> None:
    """An operator looks for who makes the load now, not for who came first."""
    counter = make_counter()
    count(counter, "abbbb" + "cc")
    before = scrape(counter)
    count(counter, "ca")
    after = scrape(counter)

    assert before == {"a": 1, "b": 4, OTHER: 2}
    assert after == {"c": 1, "b": 4, OTHER: 3}


def test_a_series_that_comes_back_goes_on_where_it_was() -> None:
    """A counter that is lower than before reads as a restart, and rates would be wrong."""
    counter = make_counter(1)
    count(counter, "aa" + "bbbb")
    first = scrape(counter)
    count(counter, "b" + "a" * 8)
    second = scrape(counter)
    count(counter, "a")

    assert first == {"a": 2, OTHER: 4}
    assert second == {"b": 1, OTHER: 12}
    assert scrape(counter) == {"a": 3, OTHER: 12}


def test_equally_busy_adapters_do_not_take_turns() -> None:
    """Series that come and go are no use to anybody, and fill the database."""
    counter = make_counter(1)
    seen = set[str]()
    for _ in range(20):
        count(counter, "ab")
        seen.update(scrape(counter))

    assert seen == {"a", OTHER}


def test_an_adapter_called_other_counts_as_such() -> None:
    """Two series of one name would be refused by whoever reads them."""
    counter = make_counter()
    counter.add(OTHER)
    count(counter, "ab")

    assert scrape(counter) == {"a": 1, "b": 1, OTHER: 1}


def test_adapters_without_a_series_are_forgotten_beyond_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ids are made up by callers for ever; memory is not."""
    monkeypatch.setattr("lokr_serve.metrics.busiest.MAX_UNNAMED", 2)
    counter = make_counter(1)
    count(counter, "ab" + "cd" + "b")  # b is forgotten, and begins anew
    first = scrape(counter)

    assert first == {"a": 1, OTHER: 4}
    assert scrape(counter) == {"a": 1, OTHER: 4}


@given(
    max_series=st.integers(1, 3),
    events=st.lists(st.sampled_from([*"abcdef", OTHER, SCRAPE]), max_size=200),
)
def test_no_series_ever_decreases_and_none_loses_a_request(
    max_series: int, events: list[str]
) -> None:
    """The laws of a counter hold whoever changes places, and their number stays bounded."""
    counter, known = make_counter(max_series), dict[str, float]()
    num_requests = 0
    for event in [*events, SCRAPE]:
        if event != SCRAPE:
            counter.add(event)
            num_requests += 1
            continue
        shown = scrape(counter)
        assert len(shown) <= max_series + 1
        assert all(value >= known.get(name, 0) for name, value in shown.items())
        known.update(shown)
        assert sum(known.values()) == num_requests
