"""Addresses that can be listened on, and those that cannot."""

import socket
from pathlib import Path

import pytest

from lokr_serve.errors import SettingsError
from lokr_serve.rpc.ports import require_free
from tests.serve.running import Connection, running_server, tiny_settings


def test_an_address_is_free_once_nobody_listens_there() -> None:
    """A server that restarts must not wait for the connections of the one before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"):
            require_free(address)

    require_free(address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "0.0.0.0:0"])
def test_a_port_that_is_picked_is_free(address: str) -> None:
    """A name may stand for addresses that this machine does not have; one is enough."""
    require_free(address)


def test_a_host_that_is_none_of_ours_cannot_be_listened_on() -> None:
    """The message says what is wrong with it."""
    with pytest.raises(OSError, match="assign"):
        require_free("192.0.2.1:0")


def test_a_port_that_is_taken_is_told_in_our_own_words(
    shared_server: Connection, model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What grpc writes to standard error by itself is no line of our log."""
    settings = tiny_settings(model_folder, server={"listen": shared_server.addresses.listen})
    with (
        pytest.raises(SettingsError, match=r"server.listen: .*: .*in use"),
        running_server(settings),
    ):
        pass

    assert capfd.readouterr().err == ""
