"""Uri: addresses of remote stores, in the one form that is taken, and which of them are allowed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lokr_serve.errors import SettingsError, SourceError

# Only what needs no escape and means the same to every driver: no user, query, fragment, escape,
# wildcard or chain of schemes, no empty step, and no step that goes up.
_STEP = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._+=,@~-]+"
_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<place>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?::[0-9]{1,5})?)"
    rf"(?P<path>(?:/{_STEP})*)/?"
)
_WEB = ("http", "https", "ftp")
_LOCAL = ("file", "local", "hf", "upload")  # have settings of their own
MAX_CHARS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Uri:
    """A bucket or host, and a path in it."""

    scheme: str
    place: str  # a bucket, or a host with its port
    steps: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Uri | None":
        """Read a URI; None if it is not of the one form that is taken."""
        match = _URI.fullmatch(text) if len(text) <= MAX_CHARS else None
        if match is None:
            return None
        steps = tuple(step for step in match["path"].split("/") if step)
        return cls(scheme=match["scheme"], place=match["place"], steps=steps)

    def __str__(self) -> str:
        """Return the one spelling of the URI."""
        return f"{self.scheme}://{'/'.join((self.place, *self.steps))}"

    @property
    def name(self) -> str:
        """The last step of the path."""
        return self.steps[-1] if self.steps else ""

    def beside(self, name: str) -> "Uri":
        """Return the URI of another name in the same folder."""
        return Uri(scheme=self.scheme, place=self.place, steps=(*self.steps[:-1], name))

    def is_under(self, prefix: "Uri") -> bool:
        """Whether the URI is a prefix with more steps."""
        num_steps = len(prefix.steps)
        return (
            (self.scheme, self.place) == (prefix.scheme, prefix.place)
            and self.steps[:num_steps] == prefix.steps
            and len(self.steps) > num_steps
        )


class AllowedUris:
    """The prefixes that sources may start with."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        """Read the prefixes.

        Raises:
            SettingsError: One is malformed, or names what has a setting of its own.
        """
        self._prefixes = tuple(map(_parse_prefix, prefixes))

    def require(self, source: str) -> Uri:
        """Return a source as a URI.

        Raises:
            SourceError: It is malformed, or starts with none of the prefixes.
        """
        if not self._prefixes:
            raise SourceError(source, "is a URI, and the server's adapters.remote allows none")
        uri = Uri.parse(source)
        if uri is None:
            raise SourceError(
                source,
                "is no plain URI: scheme://place/path, without user, query, escapes, or ..",
            )
        if not any(uri.is_under(prefix) for prefix in self._prefixes):
            raise SourceError(
                source, "starts with none of what the server's adapters.remote allows"
            )
        return uri


def _parse_prefix(text: str) -> Uri:
    uri = Uri.parse(text)
    if uri is None:
        raise SettingsError(
            f"adapters.remote: {text!r} is no plain URI such as s3://bucket/adapters/"
        )
    if uri.scheme in _WEB:
        raise SettingsError(
            f"adapters.remote: {text!r} is of the web, whose servers may lead elsewhere; put the "
            "files into an object store"
        )
    if uri.scheme in _LOCAL:
        raise SettingsError(
            f"adapters.remote: {text!r} is not far away; see adapters.directory, adapters.hub and "
            "adapters.uploads"
        )
    return uri
