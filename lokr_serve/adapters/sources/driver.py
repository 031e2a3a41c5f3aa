"""Driver: files of a remote store, through fsspec."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.spec import AbstractFileSystem

from lokr_serve.adapters.sources.deadline import Deadline
from lokr_serve.adapters.sources.uris import Uri
from lokr_serve.errors import SourceError

CHUNK_BYTES = 4 << 20
END_SECONDS = 5.0  # to close a stream

# What stores call the facts that change with a file's content.
_FACTS = (
    "ETag", "etag", "md5", "content_md5", "Content-MD5", "VersionId", "generation",
    "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip

_PACKAGES: Mapping[str, str] = MappingProxyType(
    {"s3": "lokr-serve[s3]", "s3a": "lokr-serve[s3]", "gs": "gcsfs", "gcs": "gcsfs"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as its store describes it."""

    path: str  # for the driver
    name: str
    num_bytes: int
    facts: str  # change with the content; "" if the store tells none


class Driver:
    """One file system of fsspec; blocks, and may be used by several threads.

    Its settings and credentials are the driver's own: from the environment, or from the files
    that it reads. A call that a driver makes in fsspec's event loop ends with its deadline; any
    other may outlast it.
    """

    def __init__(self, source: str, scheme: str) -> None:
        """Load the driver of a scheme.

        Raises:
            SourceError: It is not installed; ``source`` is for the message.
        """
        # Listings are not cached: they would tell of files as they were.
        options: dict[str, object] = {"use_listings_cache": False, "skip_instance_cache": True}
        try:
            kind = fsspec.get_filesystem_class(scheme)
            self._files: AbstractFileSystem = kind(**options)
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(scheme, f"a driver of fsspec for {scheme}://")
            raise SourceError(source, f"needs a driver; install {package}") from error

    def find(self, uri: Uri, deadline: Deadline) -> RemoteFile:
        """Return one file.

        Raises:
            FileNotFoundError: It does not exist.
            Exception: Whatever the driver raises.
        """
        found = self._info(self._path(uri), deadline)
        if found.get("type") != "file":
            raise FileNotFoundError(str(uri))
        return _described(found)

    def list(self, uri: Uri, deadline: Deadline) -> Mapping[str, RemoteFile]:
        """Return the files that lie directly under a URI, by name.

        Raises:
            FileNotFoundError: There are none.
            Exception: Whatever the driver raises.
        """
        path = self._path(uri)
        found = self._ls(path, deadline)
        files = [_described(entry) for entry in found if entry.get("type") == "file"]
        prefix = f"{path.rstrip('/')}/"
        return {file.name: file for file in files if file.path == f"{prefix}{file.name}"}

    def read(self, file: RemoteFile, deadline: Deadline) -> Iterator[bytes]:
        """Yield the bytes of a file in pieces of at most ``CHUNK_BYTES``.

        Raises:
            Exception: Whatever the driver raises.
        """
        if isinstance(self._files, AsyncFileSystem):
            return self._read_stream(file, deadline)
        return self._read_file(file, deadline)

    def _read_stream(self, file: RemoteFile, deadline: Deadline) -> Iterator[bytes]:
        open_stream = self._files.open_async
        try:
            stream = self._run(deadline, open_stream, file.path, size=file.num_bytes)
        except NotImplementedError:  # of a driver that has no streams
            yield from self._read_file(file, deadline)
            return
        try:
            while chunk := self._run(deadline, stream.read, CHUNK_BYTES):
                yield chunk
        finally:
            self._run(Deadline(at=monotonic() + END_SECONDS), _end, stream)

    def _read_file(self, file: RemoteFile, deadline: Deadline) -> Iterator[bytes]:
        with self._files.open(file.path, "rb") as opened:
            while chunk := opened.read(CHUNK_BYTES):
                yield chunk
                deadline.remaining()

    def _run(self, deadline: Deadline, function: Any, *arguments: Any, **options: Any) -> Any:
        """Run a coroutine function of the driver in fsspec's event loop."""
        timeout = deadline.remaining()
        return sync(self._files.loop, function, *arguments, timeout=timeout, **options)

    def _info(self, path: str, deadline: Deadline) -> Any:
        if isinstance(self._files, AsyncFileSystem):
            return self._run(deadline, self._files._info, path)
        return self._files.info(path)

    def _ls(self, path: str, deadline: Deadline) -> Any:
        if isinstance(self._files, AsyncFileSystem):
            return self._run(deadline, self._files._ls, path, detail=True)
        return self._files.ls(path, detail=True)

    def _path(self, uri: Uri) -> str:
        path: str = self._files._strip_protocol(str(uri))
        return path


async def _end(stream: Any) -> None:
    """Close a stream, and the reply that it reads, of which not all do so themselves."""
    await stream.close()
    if (reply := vars(stream).get("r")) is not None:
        reply.close()


def _described(entry: Mapping[str, Any]) -> RemoteFile:
    """Return what a store tells of a file; a size that it does not tell is -1."""
    path, size = str(entry["name"]), entry.get("size")
    facts = [f"{name}={entry[name]}" for name in _FACTS if entry.get(name)]
    return RemoteFile(
        path=path,
        name=path.rpartition("/")[2],
        num_bytes=-1 if size is None else int(size),
        facts=f"{path} {size} {' '.join(facts)}" if facts else "",
    )
