"""From the header of an upload to the values that the registry takes."""

from lokr_core.formats.locate import MAX_CONFIG_BYTES
from lokr_core.formats.strict_json import parse_json
from lokr_serve.adapters import AnnouncedFile
from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.adapters import adapter_overrides
from lokr_serve.rpc.conversion.fields import seconds
from lokr_serve.types import LoadSpec, sha256_digest
from lokr_serve.v1.adapters_pb2 import UploadHeader

PREFIX = "header."  # of the paths of its fields


def announced_file(header: UploadHeader, owner: str) -> AnnouncedFile:
    """Read what the file of a client will be; its JSON is parsed, which may take a moment.

    Raises:
        InvalidRequestError: A field can never be right; ``field`` is its path in the message.
    """
    digest = sha256_digest(header.digest)
    if digest is None:
        raise InvalidRequestError(f"{PREFIX}digest", "must be a SHA-256 of 64 hex digits")
    if header.size_bytes == 0:
        raise InvalidRequestError(f"{PREFIX}size_bytes", "must be the size of the file")
    config = header.config_json.encode() if header.config_json else None
    if config is not None:
        _require_object(config)
    return AnnouncedFile(digest=digest, num_bytes=header.size_bytes, config=config, owner=owner)


def upload_spec(header: UploadHeader, file: AnnouncedFile) -> LoadSpec:
    """Read how the file is to be registered; the registry checks the id and the time to live.

    Raises:
        InvalidRequestError: A field can never be right; ``field`` is its path in the message.
    """
    return LoadSpec(
        adapter_id=header.adapter_id,
        source=file.source,
        replace=header.replace,
        pinned=header.pinned,
        ttl_seconds=seconds(header.ttl) if header.HasField("ttl") else None,
        digest=file.digest,
        overrides=adapter_overrides(header, PREFIX),
    )


def _require_object(config: bytes) -> None:
    field = f"{PREFIX}config_json"
    if len(config) > MAX_CONFIG_BYTES:
        raise InvalidRequestError(field, f"has more than {MAX_CONFIG_BYTES} bytes")
    try:
        is_object = isinstance(parse_json(config), dict)
    except ValueError as error:
        raise InvalidRequestError(field, f"is no JSON: {error}") from error
    if not is_object:
        raise InvalidRequestError(field, "is no JSON object")
