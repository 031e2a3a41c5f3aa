"""Finding out who calls."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.access.directory import CertificateIdentities, Client, ClientDirectory
from lokr_serve.errors import UnauthenticatedError
from lokr_serve.types import Caller, Permission


def directory(*clients: tuple[str, tuple[str, ...], tuple[str, ...]]) -> ClientDirectory:
    """Return a directory of clients: name, tokens, certificates."""
    return ClientDirectory(
        Client(
            caller=Caller(name=name, permissions=frozenset(Permission)),
            token_digests=tuple(hashlib.sha256(token.encode()).digest() for token in tokens),
            certificates=certificates,
        )
        for name, tokens, certificates in clients
    )


@given(
    tokens=st.lists(st.text(), unique=True, min_size=1, max_size=8),
    others=st.lists(st.text(), max_size=8),
)
def test_each_token_finds_its_client_and_no_other_text_finds_one(
    tokens: list[str], others: list[str]
) -> None:
    """Several clients, several tokens each, and whatever a stranger may send."""
    known = directory(*((str(place), (token,), ()) for place, token in enumerate(tokens)))

    assert [known.by_token(token).name for token in tokens] == list(map(str, range(len(tokens))))
    for other in set(others) - set(tokens):
        with pytest.raises(UnauthenticatedError, match="not one that this server knows"):
            known.by_token(other)


def test_an_old_and_a_new_token_mean_the_same_client() -> None:
    """Tokens are changed without a moment at which neither works."""
    known = directory(("ci", ("old", "new"), ()))

    assert known.by_token("old") is known.by_token("new")


@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        (CertificateIdentities(uris=("spiffe://t/a",)), "a"),
        (CertificateIdentities(uris=("spiffe://t/x",), names=("b.example",)), "b"),
        (CertificateIdentities(names=("unknown", "b.example")), "b"),
        (CertificateIdentities(uris=("spiffe://t/a", "spiffe://t/a2")), "a"),
    ],
)
def test_a_certificate_means_the_client_of_one_of_its_identities(
    identities: CertificateIdentities, expected: str
) -> None:
    """A certificate may have names that the server does not care for."""
    known = directory(("a", (), ("spiffe://t/a", "spiffe://t/a2")), ("b", (), ("b.example",)))

    assert known.by_certificate(identities).name == expected


@pytest.mark.parametrize(
    ("identities", "words"),
    [
        (CertificateIdentities(), "of no client"),
        (CertificateIdentities(names=("c.example",)), "of no client"),
        (CertificateIdentities(uris=("spiffe://t/a",), names=("b.example",)), "several.*a, b"),
    ],
)
def test_a_certificate_of_nobody_or_of_several_is_refused(
    identities: CertificateIdentities, words: str
) -> None:
    """To take the first of several would let the order of names decide."""
    known = directory(("a", (), ("spiffe://t/a",)), ("b", (), ("b.example",)))

    with pytest.raises(UnauthenticatedError, match=words):
        known.by_certificate(identities)


def test_a_common_name_cannot_pass_for_a_uri() -> None:
    """An authority that checks SPIFFE ids may let its holders choose the rest of the subject."""
    known = directory(("a", (), ("spiffe://t/a",)))

    with pytest.raises(UnauthenticatedError):
        known.by_certificate(CertificateIdentities(names=("spiffe://t/a",)))


@pytest.mark.parametrize(
    ("adapters", "sources", "source", "may"),
    [
        (("*",), None, "s3://models/a", True),
        (("team-a/*",), None, "team-a/style.safetensors", True),
        (("team-a/*",), None, "team-b/style.safetensors", False),
        (("team-a/*",), None, "s3://models/team-a/style", False),
        (("team-a/*",), None, "team-a", False),
        (("style",), None, "style.safetensors", True),
        (("*",), ("s3://models/*",), "team-a/style", False),
        (("team-a/*",), ("s3://models/*", "team-a/*"), "s3://models/x", True),
        (("team-a/*",), ("s3://models/x",), "s3://models/xy", False),
        (("team-a/*",), (), "team-a/style", False),
        (("u*",), None, f"upload:{'0' * 64}", False),
        (("h*",), None, "hf://team-b/style", False),
        (("team-a/*",), None, "team-a/../team-b/style", False),
    ],
)
def test_a_client_of_some_adapters_cannot_load_those_of_others_by_their_source(
    adapters: tuple[str, ...], sources: tuple[str, ...] | None, source: str, may: bool
) -> None:
    """Else it would give another's file an id of its own, and use it."""
    caller = Caller(name="a", permissions=frozenset(), adapters=adapters, sources=sources)

    assert caller.may_load_from(source) is may
