"""Reading the manifest: what it says, or what is wrong with it and where."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lokr_serve.adapters.manifest.reading import MAX_BYTES, DeclaredAdapter, read_manifest
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.errors import ManifestError
from lokr_serve.types import AdapterOverrides

DIGEST = "0123456789abcdef" * 4

WHOLE = f"""
# All keys.
adapters:
  - id: team-a/poet
    source: poet
    digest: sha256:{DIGEST.upper()}
    pinned: true
    ttl_seconds: 90
    aliases: [dawn, team-a/best]
    partial: true
    scale_override: 0.5
    alpha: 8
    rank: 4
  - {{id: pirate, source: "hf://org/pirate"}}
"""


def refusal(text: str) -> str:
    """Return what is said of a manifest that is refused."""
    with pytest.raises(ManifestError) as caught:
        read_manifest(text.encode())
    return str(caught.value)


def test_a_manifest_says_everything_of_an_adapter() -> None:
    """What can be asked of LoadAdapter can be declared."""
    manifest = read_manifest(WHOLE.encode())

    assert list(manifest.adapters) == ["team-a/poet", "pirate"]
    assert manifest.adapters["team-a/poet"] == DeclaredAdapter(
        request=LoadRequest(
            adapter_id="team-a/poet",
            source="poet",
            overrides=AdapterOverrides(partial=True, scale_override=0.5, alpha=8.0, rank=4),
            digest=DIGEST,
        ),
        pinned=True,
        ttl_seconds=90.0,
        aliases=("dawn", "team-a/best"),
    )
    assert manifest.aliases == {"dawn": "team-a/poet", "team-a/best": "team-a/poet"}


def test_what_an_entry_leaves_out_is_as_plain_as_can_be() -> None:
    """An id and a source are enough."""
    pirate = read_manifest(WHOLE.encode()).adapters["pirate"]

    assert pirate.request == LoadRequest(
        adapter_id="pirate", source="hf://org/pirate", overrides=AdapterOverrides()
    )
    assert (pirate.pinned, pirate.ttl_seconds, pirate.aliases) == (False, 0.0, ())


def test_a_manifest_may_declare_nothing() -> None:
    """That is how all adapters are taken back."""
    manifest = read_manifest(b"adapters: []\n")

    assert not manifest.adapters
    assert not manifest.aliases


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping with the key adapters"),
        ("[]", "must be a mapping with the key adapters"),
        ("adapters:", "adapters: Input should be a valid list"),
        ("adapters: {}", "adapters: Input should be a valid list"),
        ("{}", "adapters: is required"),
        ("adapters: []\nmodel: x", "model: is no key of a manifest"),
        ("adapters: [3]", "adapters[0]: must be a mapping with the keys id and source"),
        ("adapters: [{source: x}]", "adapters[0].id: is required"),
        ("adapters: [{id: a}]", "adapters[0] ('a').source: is required"),
        ("adapters: [{id: a, source: ''}]", "adapters[0] ('a').source: String should have"),
        ("adapters: [{id: 12, source: x}]", "adapters[0] (12).id: must be text, not 12; put it in"),
        ("adapters: [{id: no, source: x}]", "must be text, not False; put it in quotes"),
        ("adapters: [{id: ../a, source: x}]", "('../a').id: '../a' is no adapter id: 1 to 128"),
    ],
)
def test_a_manifest_that_is_no_list_of_adapters_is_refused(text: str, words: str) -> None:
    """A file of another kind must not come to mean that nothing is declared."""
    assert words in refusal(text)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("digest: abc", "digest: must be a SHA-256 of 64 hex digits"),
        ("pinned: 1", "pinned: Input should be a valid boolean"),
        ("ttl_seconds: -1", "ttl_seconds: Input should be greater than or equal to 0"),
        ("ttl_seconds: .nan", "ttl_seconds: Input should be a finite number"),
        ("ttl_seconds: 5m", "ttl_seconds: Input should be a valid number"),
        ("alpha: true", "alpha: Input should be a valid number"),
        ("scale_override: .inf", "scale_override: Input should be a finite number"),
        ("rank: 0", "rank: Input should be greater than or equal to 1"),
        ("rank: 1.5", "rank: Input should be a valid integer"),
        ("aliases: dawn", "aliases: Input should be a valid list"),
        ("aliases: [ok, a b]", "aliases.1: 'a b' is no adapter id"),
        ("pined: true", "pined: is no key of a manifest"),
        ("aliases: [b]", "aliases: 'b' is the id of adapters[0]"),
        ("aliases: [c]", "aliases: 'c' is the id of adapters[1]"),
        ("aliases: [d, d]", "aliases: 'd' is an alias of adapters[1] already"),
        ("aliases: [used]", "aliases: 'used' is an alias of adapters[0] already"),
    ],
)
def test_an_entry_at_fault_is_named_by_its_index_and_its_id(field: str, words: str) -> None:
    """Manifests are long, and made by programs; whoever reads the log must find the place."""
    entries = f"[{{id: b, source: x, aliases: [used]}}, {{id: c, source: y, {field}}}]"

    assert f"adapters[1] ('c').{words}" in refusal(f"adapters: {entries}")


def test_an_id_that_is_declared_twice_is_refused() -> None:
    """The last one would win, and nobody would know."""
    text = refusal("adapters: [{id: a, source: x}, {id: a, source: y}]")

    assert text == "adapters[1] ('a'): adapters[0] has this id, too"


def test_all_that_is_wrong_is_said_at_once_but_not_without_end() -> None:
    """A manifest is mended in one go; its error is a line of a log."""
    entries = [f"{{id: a{index}, source: x, rank: 0}}" for index in range(25)]
    text = refusal(f"adapters: [{', '.join(entries)}]")

    assert "adapters[9] ('a9').rank" in text
    assert text.endswith("; and 15 more")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adapters: &all []", "an anchor in line 1"),
        ("adapters:\n- *all", "an alias in line 2"),
        ("adapters: !!python/tuple []", "a tag in line 1"),
        ("adapters: [{id: !!int ''}]", "a tag in line 1"),
        ("adapters: []\nadapters: []", "the key 'adapters' twice in line 2"),
        ("adapters: [{id: a, id: b, source: x}]", "the key 'id' twice in line 1"),
        ("adapters: [{id: a, <<: {id: b, source: x}}]", "a merge key in line 1"),
        ("<<: [{adapters: []}]\nadapters: []", "a merge key in line 1"),
        ("adapters: [{id: a, source: x, '<<': {}}]", "adapters[0] ('a').<<: is no key of a"),
        ("[" * 200_000, "more than 8 levels in line 1"),
        ("adapters: [", "is no YAML: while parsing a flow node did not find expected node content"),
        ("a:\n  - b: [}", "did not find expected node content in line 2, column 9"),
        ("adapters: [2026-13-13]", "is no YAML: month must be in 1..12"),
        ("adapters: []\n---\nadapters: []", "expected a single document"),
        ("? [a]\n: b", "found unhashable key"),
        ("a\x00", "is no YAML"),
    ],
)
def test_yaml_that_hides_what_it_says_or_costs_much_is_refused(text: str, words: str) -> None:
    """A file of a few lines could take all memory, or say a thing twice."""
    assert words in refusal(text)


def test_bytes_that_are_no_text_or_too_many_are_refused() -> None:
    """They are looked at before they are read as YAML."""
    with pytest.raises(ManifestError, match="is no YAML"):
        read_manifest(b"adapters: [\xff]")
    with pytest.raises(ManifestError, match=f"{MAX_BYTES + 1} bytes, more than {MAX_BYTES}"):
        read_manifest(b" " * (MAX_BYTES + 1))


def test_a_long_value_is_cut_in_the_error() -> None:
    """A log takes lines, not files."""
    text = refusal(f"adapters: [{{id: {'x' * 100_000}, source: y}}]")

    assert len(text) < 500


def test_a_number_too_long_to_be_written_is_refused_like_any_other() -> None:
    """Python makes such a number of hex digits, and then cannot write it in the error."""
    text = refusal(f"adapters: [{{id: 0x{'f' * 4000}, source: y}}]")

    assert "must be text, not a number of too many digits" in text


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a", "b", DIGEST]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["adapters", "id", "source", "aliases", "rank", "ttl_seconds", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(
    value=VALUES | st.builds(lambda entries: {"adapters": entries}, st.lists(VALUES, max_size=3))
)
def test_any_tree_is_a_manifest_or_an_error(value: object) -> None:
    """The reconciler keeps its last good state for a ManifestError, and for nothing else."""
    try:
        manifest = read_manifest(yaml.safe_dump(value).encode())
    except ManifestError:
        return

    assert all(math.isfinite(entry.ttl_seconds) for entry in manifest.adapters.values())


@settings(max_examples=200)
@given(
    data=st.binary(max_size=60) | st.text("adpters:[]{}&*!-? \n01.'\"", max_size=60).map(str.encode)
)
def test_any_bytes_are_a_manifest_or_an_error(data: bytes) -> None:
    """So it is with what is no YAML, and what is cut off."""
    try:
        manifest = read_manifest(data)
    except ManifestError:
        return

    assert manifest.adapters is not None
