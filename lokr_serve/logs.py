"""Logs on standard error: JSON lines for machines, plain lines on a terminal."""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from lokr_serve.calls import call_record

# The request that the current task works for; empty outside of one.
request_id_variable: ContextVar[str] = ContextVar("request_id", default="")


class _CallFilter(logging.Filter):
    """Adds to each record what is known of the call in whose task it is made."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id_variable.get()
        record.labels = call_record().labels()
        return True


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := record.__dict__.get("request_id"):
            line["request_id"] = request_id
        line |= record.__dict__.get("labels", {})
        line |= record.__dict__.get("fields", {})  # of those who give it as ``extra``
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Writes a record as a line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with its fields and the request's id at its end."""
        fields: Mapping[str, object] = record.__dict__.get("fields", {})
        words = (f"{name}={value}" for name, value in fields.items())
        line = " ".join((super().format(record), *words))
        request_id = record.__dict__.get("request_id")
        return f"{line} [{request_id}]" if request_id else line


def log_handler(stream: TextIO) -> logging.Handler:
    """Return a handler that writes to ``stream``, in the form that suits its reader."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_CallFilter())
    handler.setFormatter(TextFormatter() if stream.isatty() else JsonFormatter())
    return handler


def configure_logs(level: str) -> None:
    """Send the logs of the whole process to standard error from ``level`` on.

    Other packages are heard from warnings on only, and not where transformers advises to install
    what nothing here needs, as it does whenever diffusers is imported.
    """
    root = logging.getLogger()
    root.handlers = [log_handler(sys.stderr)]
    root.setLevel(logging.WARNING)
    for package in ("lokr_core", "lokr_serve"):
        logging.getLogger(package).setLevel(level.upper())
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
