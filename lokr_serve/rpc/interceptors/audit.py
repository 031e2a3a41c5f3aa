"""The audit log: who changed which adapters, who was refused, and who could not say who it is."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import unquote

import grpc

from lokr_core import LokrError
from lokr_serve.rpc.interceptors.authorization import is_change
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.interceptors.interceptor import Call
from lokr_serve.rpc.interceptors.outcome import telling
from lokr_serve.rpc.status import error_rule

audit_logger = logging.getLogger("lokr_serve.audit")

FAILURE_SECONDS = 60.0  # in which the failures of one host are one line, and a second with a count
MAX_FAILING_HOSTS = 1000  # that are told apart; the rest are OTHER_HOSTS
OTHER_HOSTS = "others"
MAX_TEXT = 160  # characters of what callers make up

# The adapter that the call is about; servicers set it once they have read it.
audited_id: ContextVar[str] = ContextVar("audited_id", default="")


@asynccontextmanager
async def audit_scope(call: Call) -> AsyncIterator[None]:
    """Write one line at the end of each call that changes adapters, or was refused to."""
    if not is_change(call):
        yield
        return
    reason = ""

    def tell(code: grpc.StatusCode) -> None:
        fields = {
            "method": f"{call.service}/{call.method}",
            "caller": _clean(caller_variable.get().name),
            "peer": call.context.peer(),
            "adapter_id": _clean(audited_id.get()),
            "code": code.name,
            "reason": reason,
        }
        audit_logger.info("change of adapters", extra={"fields": fields})

    with telling(call, tell):
        try:
            yield
        except LokrError as error:
            reason = error_rule(error).reason
            raise


@dataclass(slots=True, kw_only=True)
class _Failures:
    """Those of one host since its last line."""

    method: str
    problem: str
    count: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class FailureLog:
    """Writes of calls without good credentials: the first of a host at once, then their number.

    So a flood is two lines a minute and host, and few where it comes from many. Lives on the
    event loop.
    """

    _by_host: dict[str, _Failures] = field(default_factory=dict)

    def note(self, call: Call, problem: str) -> None:
        """Note a call that was refused for want of credentials."""
        host = _host(call.context.peer())
        if host not in self._by_host and len(self._by_host) >= MAX_FAILING_HOSTS:
            host = OTHER_HOSTS
        known = self._by_host.get(host)
        if known is not None:
            known.count += 1
            return
        failures = _Failures(method=_clean(call.path), problem=problem)
        self._by_host[host] = failures
        _write(host, failures, 1)
        asyncio.get_running_loop().call_later(FAILURE_SECONDS, self._end_interval, host)

    def _end_interval(self, host: str) -> None:
        failures = self._by_host.pop(host)
        if failures.count:
            _write(host, failures, failures.count)


def _write(host: str, failures: _Failures, count: int) -> None:
    fields = {
        "peer": host,
        "method": failures.method,
        "code": grpc.StatusCode.UNAUTHENTICATED.name,
        "problem": failures.problem,
        "count": count,
    }
    audit_logger.warning("no valid credentials", extra={"fields": fields})


def _clean(text: str) -> str:
    """Return what a caller has made up as a short text of one line."""
    return text[:MAX_TEXT] if text.isprintable() else ascii(text[:MAX_TEXT])


def _host(peer: str) -> str:
    """Return grpc's name of a peer without its port: ``ipv4:10.0.0.1``."""
    kind, _, address = unquote(peer).partition(":")
    host, colon, port = address.rpartition(":")
    return f"{kind}:{host}" if colon and port.isdecimal() else peer
