"""What names stand for, while a manifest takes effect."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.adapters.manifest.aliases import AliasTable, next_targets
from lokr_serve.errors import InvalidRequestError
from tests.serve.adapters.callers import part

NAMES = st.sampled_from("abcdef")


def table(**targets: str) -> AliasTable:
    """Return a table with these aliases."""
    aliases = AliasTable()
    aliases.publish(targets)
    return aliases


def test_an_alias_stands_for_its_id_and_an_id_for_itself() -> None:
    """Requests may use either, and do not care which."""
    aliases = table(dawn="poet", best="poet", loud="pirate")

    assert [aliases.resolve(name) for name in ("dawn", "poet", "new")] == ["poet", "poet", "new"]
    assert aliases.names_of("poet") == ("best", "dawn")
    assert aliases.names_of("plain") == ()


def test_parts_keep_their_weights_when_their_names_are_resolved() -> None:
    """An alias changes what an adapter is called, and nothing else."""
    parts = table(dawn="poet").resolve_parts([part("dawn", 0.7, mlp=0.3), part("pirate", 2.0)])

    assert list(parts) == [part("poet", 0.7, mlp=0.3), part("pirate", 2.0)]


@pytest.mark.parametrize("names", [("dawn", "poet"), ("poet", "dawn"), ("dawn", "best")])
def test_one_adapter_by_two_names_is_refused(names: tuple[str, str]) -> None:
    """Whoever mixes it twice is told why the two are the same."""
    with pytest.raises(InvalidRequestError, match="are both 'poet'") as caught:
        table(dawn="poet", best="poet").resolve_parts([part("x"), *map(part, names)])

    assert caught.value.field == "adapters[2].adapter_id"


def test_a_new_alias_is_there_at_once() -> None:
    """A request by it gets the error of its adapter, rather than hear that there is none."""
    assert next_targets({}, {"dawn": "a"}, loaded={"a": False}) == {"dawn": "a"}


@pytest.mark.parametrize(("is_loaded", "target"), [(False, "a"), (True, "b")])
def test_an_alias_moves_when_its_next_adapter_has_been_loaded(is_loaded: bool, target: str) -> None:
    """A new version that is broken must not take the old one's requests with it."""
    loaded = {"a": True, "b": is_loaded}

    assert next_targets({"dawn": "a"}, {"dawn": "b"}, loaded=loaded) == {"dawn": target}


def test_an_alias_of_what_is_gone_moves_at_once() -> None:
    """There is nothing left to wait with."""
    assert next_targets({"dawn": "a"}, {"dawn": "b"}, loaded={"b": False}) == {"dawn": "b"}


@pytest.mark.parametrize(("is_loaded", "targets"), [(False, {}), (True, {"a": "b"})])
def test_an_id_becomes_an_alias_when_its_next_adapter_has_been_loaded(
    is_loaded: bool, targets: dict[str, str]
) -> None:
    """A name that was an id itself goes on being one until then."""
    assert next_targets({}, {"a": "b"}, loaded={"a": True, "b": is_loaded}) == targets


@pytest.mark.parametrize(("is_loaded", "targets"), [(False, {"a": "b"}), (True, {})])
def test_an_alias_becomes_an_id_when_that_has_been_loaded(
    is_loaded: bool, targets: dict[str, str]
) -> None:
    """Else its requests would wait for the new version, or fail with it."""
    assert next_targets({"a": "b"}, {}, loaded={"a": is_loaded, "b": True}) == targets


def test_an_alias_that_becomes_an_id_has_it_at_once_if_what_it_meant_is_gone() -> None:
    """There is nothing left to wait with."""
    assert next_targets({"a": "b"}, {}, loaded={"a": False}) == {}


def test_an_alias_of_an_alias_that_becomes_an_id_means_the_same() -> None:
    """The two are one adapter in the manifest, and so they are at any time before."""
    waiting = next_targets({"a": "b"}, {"x": "a"}, loaded={"a": False, "b": True})
    done = next_targets(waiting, {"x": "a"}, loaded={"a": True, "b": True})

    assert (waiting, done) == ({"a": "b", "x": "b"}, {"x": "a"})


def test_a_name_that_another_still_means_is_not_given_away() -> None:
    """Else the other one would come to mean a third adapter for a while."""
    current, wanted = {"x": "a"}, {"x": "b", "a": "c"}
    waiting = next_targets(current, wanted, loaded={"a": True, "b": False, "c": True})
    done = next_targets(waiting, wanted, loaded={"a": True, "b": True, "c": True})

    assert (waiting, done) == ({"x": "a"}, {"x": "b", "a": "c"})


@st.composite
def manifests(draw: st.DrawFn) -> tuple[set[str], dict[str, str]]:
    """Draw declared ids, and which of them each alias stands for."""
    ids = draw(st.sets(NAMES, min_size=1))
    free = sorted(set("abcdef") - ids)
    aliases = draw(st.sets(st.sampled_from(free))) if free else set()
    return ids, {alias: draw(st.sampled_from(sorted(ids))) for alias in sorted(aliases)}


@given(manifests=st.lists(manifests(), max_size=5), order=st.permutations("abcdef"))
def test_aliases_come_to_stand_for_what_is_wanted_and_never_for_each_other(
    manifests: list[tuple[set[str], dict[str, str]]], order: list[str]
) -> None:
    """Whatever manifests follow each other, and in whatever order their adapters are loaded."""
    current: dict[str, str] = {}
    loaded: dict[str, bool] = {}
    for ids, wanted in manifests:
        loaded |= {adapter_id: loaded.get(adapter_id, False) for adapter_id in ids}
        for adapter_id in (None, *(name for name in order if name in ids)):
            if adapter_id is not None:
                loaded[adapter_id] = True
            current = next_targets(current, wanted, loaded=loaded)

            assert not current.keys() & set(current.values())
            assert all(target in loaded for target in current.values())
        assert current == wanted
        loaded = dict.fromkeys(ids, True)
