"""Fetcher: brings the files of one remote adapter here, and no others."""

import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from lokr_core import LokrError
from lokr_core.formats.locate import CONFIG_NAME, MAX_CONFIG_BYTES, SUFFIX, TENSORS_NAME
from lokr_serve.adapters.sources.deadline import Deadline
from lokr_serve.adapters.sources.driver import Driver, RemoteFile
from lokr_serve.adapters.sources.fetched import (
    CopyKey,
    FetchedFiles,
    Incoming,
    IncompleteError,
    state_of,
)
from lokr_serve.adapters.sources.uris import Uri
from lokr_serve.errors import SourceError

logger = logging.getLogger(__name__)


class UnreachableError(Exception):
    """A store does not give a file now; the message is for clients."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Errand:
    """What to bring, from where, and until when."""

    source: str  # as it was given, for messages
    uri: Uri
    driver: Driver
    deadline: Deadline


class Fetcher:
    """Fetches in whatever thread calls it; what drivers raise goes to the log alone."""

    def __init__(self, fetched: FetchedFiles, *, max_file_bytes: int) -> None:
        self._fetched = fetched
        self._max_file_bytes = max_file_bytes

    def fetch(self, errand: Errand) -> str:
        """Hold a copy of an adapter as its store has it now; return the copy's name.

        Raises:
            SourceError: It does not exist, is too large, or may not be read.
            StorageFullError: There is no room for a copy.
            UnreachableError: Anything that may pass.
        """
        with _asking(errand.source):
            files = _find(errand)
        self._require_sizes(errand.source, files)
        key = CopyKey(uri=str(errand.uri), state=state_of(file.facts for file in files.values()))
        return self._fetched.take(key) or self._store(errand, key, files)

    def _store(self, errand: Errand, key: CopyKey, files: Mapping[str, RemoteFile]) -> str:
        incoming = {
            name: Incoming(num_bytes=file.num_bytes, chunks=_chunks(errand, file))
            for name, file in files.items()
        }
        (tensors_name,) = (name for name in files if name != CONFIG_NAME)
        try:
            return self._fetched.store(key, incoming, tensors_name)
        except IncompleteError as error:
            raise UnreachableError(f"broke off: {error}") from error

    def _require_sizes(self, source: str, files: Mapping[str, RemoteFile]) -> None:
        """Refuse what is too large before it is read."""
        if any(file.num_bytes < 0 for file in files.values()):
            raise SourceError(source, "is in a store that does not tell its size")
        if CONFIG_NAME in files and files[CONFIG_NAME].num_bytes > MAX_CONFIG_BYTES:
            raise SourceError(source, f"has an {CONFIG_NAME} of more than {MAX_CONFIG_BYTES} bytes")
        num_bytes = sum(file.num_bytes for file in files.values())
        if num_bytes > self._max_file_bytes:
            raise SourceError(
                source,
                f"has {num_bytes} bytes, more than the server's adapters.max_file_bytes, "
                f"{self._max_file_bytes}",
            )


def _find(errand: Errand) -> Mapping[str, RemoteFile]:
    """Return the tensor file of a URI, and the configuration beside it, by name."""
    uri, driver, deadline = errand.uri, errand.driver, errand.deadline
    if not uri.name.endswith(SUFFIX):
        return _of_folder(errand.source, driver.list(uri, deadline))
    files = {uri.name: driver.find(uri, deadline)}
    if uri.name == TENSORS_NAME:
        with suppress(FileNotFoundError):
            files[CONFIG_NAME] = driver.find(uri.beside(CONFIG_NAME), deadline)
    return files


def _of_folder(source: str, files: Mapping[str, RemoteFile]) -> Mapping[str, RemoteFile]:
    if TENSORS_NAME in files:
        return {name: files[name] for name in (TENSORS_NAME, CONFIG_NAME) if name in files}
    found = sorted(name for name in files if name.endswith(SUFFIX))
    if len(found) != 1:
        problem = "holds several" if found else "holds no"
        raise SourceError(source, f"{problem} {SUFFIX} files; name one, or {TENSORS_NAME}")
    return {found[0]: files[found[0]]}


def _chunks(errand: Errand, file: RemoteFile) -> Generator[bytes, None, None]:
    with _asking(errand.source):
        yield from errand.driver.read(file, errand.deadline)


@contextmanager
def _asking(source: str) -> Iterator[None]:
    """Turn whatever a driver raises into what clients are told; the log has its own words."""
    try:
        yield
    except LokrError:
        raise
    except FileNotFoundError as error:
        raise SourceError(source, "does not exist in its store") from error
    except PermissionError as error:
        logger.warning("source %r: %s", source, error)
        raise SourceError(source, "may not be read by the server") from error
    except TimeoutError as error:
        raise UnreachableError("did not come in time") from error
    except Exception as error:  # drivers raise what they like
        logger.warning("source %r: %s: %s", source, type(error).__name__, error)
        raise UnreachableError("cannot be reached; the server's log has the cause") from error
