"""The waiting room."""

import pytest

from lokr_serve.errors import QueueFullError
from lokr_serve.rpc.admission import WaitingRoom


def test_a_full_room_refuses() -> None:
    """Without a bound, a burst would fill memory and every request would wait for ever."""
    room = WaitingRoom(1)

    with room.place(), pytest.raises(QueueFullError, match="1 requests wait"), room.place():
        pass


def test_a_place_is_free_again_once_its_request_runs_or_ends() -> None:
    """Running requests are bounded elsewhere; a place must be given back once, not twice."""
    room = WaitingRoom(1)
    with room.place() as leave:
        leave()
        with room.place():
            pass
        leave()

    with room.place(), pytest.raises(QueueFullError), room.place():
        pass
