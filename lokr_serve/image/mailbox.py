"""Mailbox: the events of one request for images, which come from its thread and the engine's."""

from collections.abc import Iterable
from functools import partial

from lokr_core import LokrError
from lokr_serve import mailbox
from lokr_serve.types import ImageEvent, ImagePreview, ImageProgress


class Mailbox(mailbox.Mailbox[ImageEvent]):
    """Events from a request's thread.

    A reader that is slow gets the last progress and the last preview of each image that waited
    for it; images and their ends wait for as long as they must.
    """

    def post(self, event: ImageEvent) -> None:
        """Add an event; called on any thread."""
        mailbox.post(self.loop, partial(self.put, [event]))

    def put(self, events: Iterable[ImageEvent]) -> None:
        """Add events in place of those that they make needless; called on the loop."""
        for event in events:
            self._events = [waiting for waiting in self._events if not _replaces(event, waiting)]
            super().put([event])

    def fail(self, error: LokrError) -> None:
        """End the stream with an error, after the events that are there; called on any thread."""
        mailbox.post(self.loop, partial(super().fail, error))

    def close(self) -> None:
        """Note that nothing works for the request any more; called on any thread."""
        mailbox.post(self.loop, super().close)


def _replaces(event: ImageEvent, waiting: ImageEvent) -> bool:
    """Whether a reader that has not had the one that waits needs only the new one."""
    if isinstance(event, ImageProgress):
        return isinstance(waiting, ImageProgress)
    if isinstance(event, ImagePreview):
        return isinstance(waiting, ImagePreview) and waiting.index == event.index
    return False
