"""Reloaded: a value that is made from files, and made anew when they change."""

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

from lokr_serve.errors import SettingsError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Contents = tuple[bytes, ...]


class Look(Enum):
    """What a look at the files found."""

    SAME = "same"
    RENEWED = "renewed"
    FAILED = "failed"


class Reloaded(Generic[T]):
    """Keeps the last good value: what cannot be read or is malformed is reported and not taken.

    Files are compared by content, so it does not matter how they change: written over, moved into
    place, or behind links that are swapped, as Kubernetes does.
    """

    def __init__(self, subject: str, files: Sequence[Path], parse: Callable[[Contents], T]) -> None:
        """Read the files for the first time.

        Args:
            subject: What the value is, for the log and the metrics.
            files: What it is made from.
            parse: Makes it of their contents; raises a SettingsError if they are malformed.

        Raises:
            SettingsError: They cannot be read, or are malformed.
        """
        self.subject = subject
        self._files = tuple(files)
        self._parse = parse
        self._good = self._read()
        self._bad: Contents | None = None
        self._problem = ""
        self._value = parse(self._good)

    @property
    def value(self) -> T:
        """The value of the last good contents."""
        return self._value

    def look(self) -> Look:
        """Look at the files, and take what is new and good; blocks on the file system."""
        try:
            contents = self._read()
            if contents == self._bad:
                return Look.FAILED
            if contents == self._good:
                self._bad, self._problem = None, ""
                return Look.SAME
            self._bad = contents
            self._value = self._parse(contents)
        except SettingsError as error:
            self._note(str(error))
            return Look.FAILED
        self._good, self._bad, self._problem = contents, None, ""
        logger.info("the %s have changed; the new ones are in force", self.subject)
        return Look.RENEWED

    def _read(self) -> Contents:
        return tuple(map(_read, self._files))

    def _note(self, problem: str) -> None:
        """Log a problem once, not at every look."""
        if problem != self._problem:
            logger.error("%s; the %s from before stay in force", problem, self.subject)
        self._problem = problem


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SettingsError(f"security: {file} cannot be read: {error.strerror}") from error
