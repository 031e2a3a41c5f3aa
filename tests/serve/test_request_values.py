"""What a program may put into a request, and no message has room for."""

from collections.abc import Callable

import pytest

from lokr_serve.errors import InvalidRequestError
from lokr_serve.types import (
    ChatMessage,
    ImageOutput,
    ImageParams,
    ImageRequest,
    ScheduledFactor,
    TextPrompt,
    WeightSchedule,
)

HALF = "a \udcff"  # half of a character, as the command line spells a byte that is no text
BUILDERS: dict[str, Callable[[], object]] = {
    "text": lambda: TextPrompt(text=HALF),
    "messages.messages.role": lambda: ChatMessage(role=HALF, content=""),
    "messages.messages.content": lambda: ChatMessage(role="user", content=HALF),
    "params.width": lambda: ImageParams(width=2**32),
    "params.height": lambda: ImageParams(height=2**32),
    "params.num_steps": lambda: ImageParams(num_steps=2**32),
    "params.scheduler": lambda: ImageParams(scheduler=HALF),
    "output.preview_interval": lambda: ImageOutput(preview_interval=2**32),
    "prompt": lambda: ImageRequest(prompt=HALF),
    "negative_prompt": lambda: ImageRequest(prompt="", negative_prompt=HALF),
    "schedules['ink']": lambda: WeightSchedule(
        adapter_id="ink", points=(ScheduledFactor(step=2**32, factor=1.0),)
    ),
}


@pytest.mark.parametrize("path", BUILDERS)
def test_what_no_message_can_hold_is_refused_by_its_path(path: str) -> None:
    """The client's user gets the server's kind of error, and none from inside protobuf."""
    with pytest.raises(InvalidRequestError) as caught:
        BUILDERS[path]()

    assert caught.value.field == path
