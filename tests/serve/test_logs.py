"""Logs."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from lokr_serve.calls import recorded_call
from lokr_serve.logs import configure_logs, log_handler, request_id_variable


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that hands nothing on."""
    logger = logging.getLogger("lokr_serve.tests.logs")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers.clear()


def test_lines_for_machines_are_json_with_the_request(logger: logging.Logger) -> None:
    """Logs are joined by request, and a traceback must not break a line."""
    stream = io.StringIO()
    logger.addHandler(log_handler(stream))
    token = request_id_variable.set("r-1")
    try:
        int("broken")
    except ValueError:
        logger.exception("failed %d times", 2)
    finally:
        request_id_variable.reset(token)
    (line,) = map(json.loads, stream.getvalue().splitlines())

    assert (line["level"], line["message"], line["request_id"]) == (
        "error",
        "failed 2 times",
        "r-1",
    )
    assert "ValueError: invalid literal" in line["traceback"]


def test_lines_outside_a_request_name_none(logger: logging.Logger) -> None:
    """An empty id would look like a request without a name."""
    stream = io.StringIO()
    logger.addHandler(log_handler(stream))
    logger.info("ready")

    assert "request_id" not in json.loads(stream.getvalue())


def test_lines_say_whose_call_they_are_about(logger: logging.Logger) -> None:
    """One looks for all of a client, a mix or a trace; what is not known is left out."""
    stream = io.StringIO()
    logger.addHandler(log_handler(stream))

    with recorded_call() as record:
        logger.info("accepted")
        record.client, record.trace_id, record.span_id = "team-a", "0af7", "b7ad"
        record.mix = "poet*0.5"
        logger.info("leased")
        record.mix = ""
        logger.info("base", extra={"fields": {"seconds": 0.5}})
    logger.info("elsewhere")
    accepted, leased, base, elsewhere = map(json.loads, stream.getvalue().splitlines())
    common = {"time", "level", "logger", "message"}

    assert accepted.keys() == elsewhere.keys() == common
    assert {key: leased[key] for key in leased.keys() - common} == {
        "client": "team-a",
        "trace_id": "0af7",
        "span_id": "b7ad",
        "mix": "poet*0.5",
    }
    assert (base["mix"], base["seconds"]) == ("", 0.5)


def test_fields_are_readable_on_a_terminal(logger: logging.Logger) -> None:
    """What a line is about is in its fields."""
    stream = Terminal()
    logger.addHandler(log_handler(stream))
    logger.info("call ended", extra={"fields": {"code": "OK", "seconds": 0.5}})

    assert stream.getvalue().strip().endswith("call ended code=OK seconds=0.5")


@pytest.mark.parametrize("request_id", ["", "r-1"])
def test_lines_on_a_terminal_are_for_people(logger: logging.Logger, request_id: str) -> None:
    """Who starts a server by hand reads its log."""
    stream = Terminal()
    logger.addHandler(log_handler(stream))
    token = request_id_variable.set(request_id)
    logger.info("ready")
    request_id_variable.reset(token)
    line = stream.getvalue().strip()

    assert line.endswith("ready [r-1]" if request_id else "ready")


def test_only_our_own_packages_are_heard_below_warnings() -> None:
    """Other libraries' chatter hides what matters."""
    root, importer = logging.getLogger(), logging.getLogger("transformers.utils.import_utils")
    handlers, level, importer_level = root.handlers, root.level, importer.level
    try:
        configure_logs("debug")

        assert logging.getLogger("lokr_serve.x").isEnabledFor(logging.DEBUG)
        assert not logging.getLogger("transformers_like").isEnabledFor(logging.INFO)
        assert not importer.isEnabledFor(logging.WARNING)
        (handler,) = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        assert handler.stream is sys.stderr
    finally:
        root.handlers, root.level = handlers, level
        importer.setLevel(importer_level)
        logging.getLogger("lokr_serve").setLevel(logging.NOTSET)
        logging.getLogger("lokr_core").setLevel(logging.NOTSET)
