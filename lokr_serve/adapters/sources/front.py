"""Sources: where adapters come from, told apart by the text of the source."""

from contextlib import AbstractAsyncContextManager

from lokr_serve.adapters.sources.folder import FolderSource
from lokr_serve.adapters.sources.hub import SCHEME as HUB_SCHEME
from lokr_serve.adapters.sources.hub import HubSource
from lokr_serve.adapters.sources.located import Located, Source
from lokr_serve.adapters.sources.near import NearSource
from lokr_serve.adapters.sources.remote import RemoteSource
from lokr_serve.adapters.sources.shelf import SCHEME as UPLOAD_SCHEME
from lokr_serve.adapters.sources.uploads import Uploads
from lokr_serve.adapters.workers import Workers, join
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import NotServedError, SourceError
from lokr_serve.metrics import Metrics


class Sources:
    """Every kind of source, behind the one method that they have in common.

    A source without a scheme is a path in the adapter folder, ``upload:<key>`` what was uploaded,
    ``hf://`` what lies in the hub folder, and any other URI is fetched if it is allowed. Lives on
    the event loop.
    """

    def __init__(self, *, settings: AdapterSettings, workers: Workers, metrics: Metrics) -> None:
        """Bind the folders; none is touched before :meth:`open`.

        Args:
            settings: Of all kinds of sources.
            workers: Where files on this machine are looked for.
            metrics: Told of fetches.

        Raises:
            SettingsError: What is allowed of remote stores is malformed.
        """
        self._workers = workers
        self._hub = HubSource(settings.hub)
        self._near_folder = NearSource(FolderSource(settings.directory).locate, workers)
        self._near_hub = NearSource(self._hub.locate, workers)
        self._uploads: Uploads | None = None
        if settings.uploads is not None:
            self._uploads = Uploads(
                settings.uploads,
                max_bytes=settings.upload_bytes,
                max_file_bytes=settings.max_file_bytes,
            )
        self._remote: RemoteSource | None = None
        if settings.remote:
            assert settings.fetched is not None
            self._remote = RemoteSource(
                settings.fetched, settings=settings, workers=workers, metrics=metrics
            )

    def uploads(self) -> Uploads:
        """Return what receives uploads.

        Raises:
            NotServedError: The server takes none.
        """
        if self._uploads is None:
            raise NotServedError(
                "this server takes no uploads: it has no adapters.uploads; put the file where its "
                "sources are, and call LoadAdapter"
            )
        return self._uploads

    async def open(self) -> None:
        """Make the folders that files are kept in, and clear up what a crash left there.

        Raises:
            SettingsError: A folder is missing, cannot be made, or is another server's.
        """
        for opening in (self._hub.open, self._open_kept):
            await join(self._workers.submit(opening))

    def held(self, source: str, digest: str | None) -> AbstractAsyncContextManager[Located]:
        """Keep a source's files in place while the block reads them; see :class:`Source`.

        Raises:
            SourceError, SourceUnavailableError, StorageFullError: They cannot be had.
        """
        return self._kind(source).held(source, digest)

    def retain(self, source: str) -> None:
        """Note that an id is registered with a source."""
        if source.startswith(UPLOAD_SCHEME) and self._uploads is not None:
            self._uploads.retain(source)

    def release(self, source: str) -> None:
        """Note that an id is not registered with a source any more; only uploads are removed."""
        if source.startswith(UPLOAD_SCHEME) and self._uploads is not None:
            self._uploads.release(source)

    async def close(self) -> None:
        """Wait for the threads that write uploads, and leave those that fetch behind."""
        if self._remote is not None:
            self._remote.close()
        if self._uploads is not None:
            await self._uploads.close()

    def _kind(self, source: str) -> Source:
        if source.startswith(UPLOAD_SCHEME):
            return _present(source, self._uploads, "an upload", "adapters.uploads")
        if source.startswith(HUB_SCHEME):
            return self._near_hub
        if "://" in source:
            return _present(source, self._remote, "a URI", "adapters.remote")
        return self._near_folder

    def _open_kept(self) -> None:
        for kept in (self._uploads, self._remote):
            if kept is not None:
                kept.open()


def _present(source: str, kind: Source | None, noun: str, setting: str) -> Source:
    if kind is None:
        raise SourceError(source, f"is {noun}, and the server has no {setting}")
    return kind
