"""What a client proves itself with, before it reaches a server."""

import pytest

from lokr_serve.client import Credentials

TOKEN = "a-token-that-nobody-guesses"


def test_a_token_goes_with_every_call() -> None:
    """Beside what a call has already."""
    metadata = Credentials(token=TOKEN).added_to((("x-request-id", "a"),))

    assert metadata == (("x-request-id", "a"), ("authorization", f"Bearer {TOKEN}"))
    assert Credentials().added_to(()) == ()


@pytest.mark.parametrize(
    ("credentials", "has_tls"),
    [
        (Credentials(token=TOKEN), False),
        (Credentials(tls=True), True),
        (Credentials(root_certificates=b"pem"), True),
        (Credentials(certificate_chain=b"pem", private_key=b"pem"), True),
    ],
)
def test_what_only_tls_can_use_turns_it_on(credentials: Credentials, *, has_tls: bool) -> None:
    """Nobody who names an authority wants to talk in the clear."""
    assert credentials.has_tls is has_tls


@pytest.mark.parametrize("token", ["", "two words", "line\n", "tök"])
def test_what_is_no_token_is_refused_without_being_told(token: str) -> None:
    """The transport would fail later, and say the value."""
    with pytest.raises(ValueError, match="token: must be printable") as caught:
        Credentials(token=token)

    assert token not in str(caught.value) or not token


def test_a_certificate_needs_its_key() -> None:
    """Else TLS would go on without either."""
    with pytest.raises(ValueError, match="go together"):
        Credentials(certificate_chain=b"pem")


def test_secrets_are_not_shown() -> None:
    """A value like this ends in a log sooner or later."""
    shown = repr(Credentials(token=TOKEN, certificate_chain=b"chain", private_key=b"secret"))

    assert TOKEN not in shown
    assert "secret" not in shown
