"""The file of clients: who may call, what proves it, and what each may do."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lokr_serve.access.directory import Client, ClientDirectory
from lokr_serve.config import Rate, Share
from lokr_serve.errors import SettingsError
from lokr_serve.problems import problems_of
from lokr_serve.types import Caller, ClientLimits, Permission, Priority

_NAME = re.compile(r"[!-~]{1,128}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_ADAPTERS = re.compile(r"[A-Za-z0-9._/-]*\*|[A-Za-z0-9._/-]+")
_WORDS = MappingProxyType(
    {
        "missing": "is required",
        "extra_forbidden": "is nothing that a client has; check its spelling",
    }
)

Count = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Client(_Section):
    """One client as the file has it; a message never repeats what stands there."""

    name: str
    tokens_sha256: list[str] = []
    certificates: list[str] = []
    permissions: list[Literal["infer", "admin"]]
    adapters: list[str] = ["*"]
    sources: list[str] | None = None
    max_requests: Count | None = None
    rate: Rate | None = None
    queue_share: Share | None = None
    adapter_bytes: Count | None = None
    max_priority: Literal["low", "normal", "high"] = "high"

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if _NAME.fullmatch(value) is None:
            raise ValueError("must be at most 128 printable ASCII characters, without spaces")
        return value

    @field_validator("tokens_sha256")
    @classmethod
    def _are_digests(cls, values: list[str]) -> list[str]:
        for place, value in enumerate(values):
            if _SHA256.fullmatch(value) is None:
                raise ValueError(
                    f"entry {place} is no SHA-256 of 64 hex digits; "
                    "make it of a token with `lokr-serve config hash-token`"
                )
        return values

    @field_validator("certificates", "sources")
    @classmethod
    def _are_filled(cls, values: list[str] | None) -> list[str] | None:
        if values is not None and "" in values:
            raise ValueError("has an empty entry; remove it")
        return values

    @field_validator("permissions")
    @classmethod
    def _has_some(cls, values: list[str]) -> list[str]:
        if not values:
            raise ValueError("is empty; give infer, admin or both, or remove the client")
        return values

    @field_validator("adapters")
    @classmethod
    def _are_patterns(cls, values: list[str]) -> list[str]:
        for place, value in enumerate(values):
            if _ADAPTERS.fullmatch(value) is None:
                raise ValueError(f"entry {place} is no adapter id, nor a prefix that ends in *")
        return values

    def client(self) -> Client:
        caller = Caller(
            name=self.name,
            permissions=frozenset(map(Permission, self.permissions)),
            adapters=tuple(self.adapters),
            sources=None if self.sources is None else tuple(self.sources),
            limits=ClientLimits(
                max_requests=self.max_requests,
                rate=self.rate,
                queue_share=self.queue_share,
                adapter_bytes=self.adapter_bytes,
                max_priority=Priority[self.max_priority.upper()],
            ),
        )
        return Client(
            caller=caller,
            token_digests=tuple(map(bytes.fromhex, self.tokens_sha256)),
            certificates=tuple(self.certificates),
        )


class _File(_Section):
    clients: list[_Client]


def parse_clients(file: Path, content: bytes, *, has_client_ca: bool) -> ClientDirectory:
    """Read the content of a file of clients.

    Args:
        file: The file, for messages.
        content: What it holds.
        has_client_ca: Whether callers have certificates that can be relied on.

    Raises:
        SettingsError: It is malformed, or two clients in it cannot be told apart; the message
            has the place and the remedy, and never a value that might be a secret.
    """
    try:
        clients = _File.model_validate(tomllib.loads(content.decode())).clients
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _error(file, f"is no TOML: {error}") from None
    except ValidationError as error:
        # Without the cause, whose text has values: they may be secrets.
        raise _error(file, "; ".join(problems_of(error, _WORDS))) from None
    if not clients:
        raise _error(file, "names no client, so that nobody could call; add one")
    _check(file, clients, has_client_ca=has_client_ca)
    return ClientDirectory(client.client() for client in clients)


def _check(file: Path, clients: Sequence[_Client], *, has_client_ca: bool) -> None:
    """Check what concerns more than one field or client."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for place, client in enumerate(clients):
        here = f"clients.{place} ({client.name})"
        if client.name in names:
            raise _error(file, f"{here}: has the name of another; give each its own")
        names.add(client.name)
        if not (client.tokens_sha256 or client.certificates):
            raise _error(file, f"{here}: needs tokens_sha256 or certificates, to be known by")
        if client.certificates and not has_client_ca:
            raise _error(file, f"{here}.certificates: need security.client_ca, which is not set")
        for kind, proofs in (
            ("tokens_sha256", [digest.lower() for digest in client.tokens_sha256]),
            ("certificates", client.certificates),
        ):
            for entry, proof in enumerate(proofs):
                if proof in owners:
                    raise _error(
                        file,
                        f"{here}.{kind}.{entry}: client {owners[proof]} has the same; "
                        "remove one of them",
                    )
                owners[proof] = client.name


def _error(file: Path, problem: str) -> SettingsError:
    return SettingsError(f"security.clients: {file}: {problem}")
