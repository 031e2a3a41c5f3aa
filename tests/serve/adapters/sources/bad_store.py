"""A store that speaks as much of S3 as reading files takes, and serves them badly."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = b"x" * 5000


class Fault(Enum):
    """What is wrong with the way a file is served, by the beginning of its name."""

    NONE = "none"
    SILENT = "silent"  # accepts, and never answers
    STALLED = "stalled"  # stops in the middle, and stays
    TRICKLING = "trickling"  # a byte at a time
    CUT = "cut"  # hangs up in the middle
    ENDLESS = "endless"  # brings more than it told, without end
    SHORT = "short"  # has become shorter since it told
    FAILING = "failing"  # 500
    FORBIDDEN = "forbidden"  # 403
    MISSING = "missing"  # 404


class BadStore:
    """Serves any path as its name says, until it is healed."""

    def __init__(self) -> None:
        self.is_healed = False
        self.gets: Counter[str] = Counter()  # by path
        self.closing = threading.Event()
        store = self

        class Handler(_Handler):
            """Bound to this store."""

            bad_store = store

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["BadStore"]:
        """Serve while the block runs."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    bad_store: BadStore

    @property
    def _fault(self) -> Fault:
        """The fault that the file's name has."""
        word = self.path.rpartition("/")[2].partition(".")[0].partition("-")[0]
        known = {fault.value: fault for fault in Fault}
        return Fault.NONE if self.bad_store.is_healed else known.get(word, Fault.NONE)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Tell size and state."""
        match self._fault:
            case Fault.SILENT:
                self.bad_store.closing.wait()
            case Fault.FAILING:
                self.send_error(500)
            case Fault.FORBIDDEN:
                self.send_error(403)
            case Fault.MISSING:
                self.send_error(404)
            case _:
                self._tell()

    def do_GET(self) -> None:
        """Serve the file as the fault has it."""
        if "list-type" in self.path:
            self.send_error(404)
            return
        self.bad_store.gets[self.path] += 1
        match self._fault:
            case Fault.ENDLESS:
                self._tell(1 << 40)
            case Fault.SHORT:
                self._tell(2000)
            case _:
                self._tell()
        try:
            self._serve()
        except OSError:  # the client has hung up
            self.close_connection = True

    def _tell(self, num_bytes: int = len(CONTENT)) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(num_bytes))
        self.send_header("ETag", '"one"')
        self.end_headers()

    def _serve(self) -> None:
        store = self.bad_store
        match self._fault:
            case Fault.STALLED:
                self.wfile.write(CONTENT[:2000])
                store.closing.wait()
            case Fault.TRICKLING:
                for byte in CONTENT:
                    self.wfile.write(bytes([byte]))
                    if store.closing.wait(0.02):
                        return
            case Fault.CUT:
                self.wfile.write(CONTENT[:2000])
                self.close_connection = True
            case Fault.SHORT:
                self.wfile.write(CONTENT[:2000])
            case Fault.ENDLESS:
                while not store.closing.is_set():
                    self.wfile.write(CONTENT)
            case _:
                self.wfile.write(CONTENT)
