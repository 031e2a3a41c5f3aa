"""Store: a real S3-compatible server in this process, with every adapter in it, behind a proxy."""

import logging
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.chaos.proxy import Proxy

BUCKET = "chaos"
OPEN, PINNED = f"s3://{BUCKET}/open/", f"s3://{BUCKET}/pinned/"
REGION = "us-east-1"
PUT_SECONDS = 30


@asynccontextmanager
async def store(adapters: Path, seed: int) -> AsyncIterator[Proxy]:
    """Serve a folder of adapters, twice: once for those who know the digests."""
    from moto.server import ThreadedMotoServer  # of an extra: the rest can be imported without it

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # which tells of every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        _fill(f"http://{host}:{port}/{BUCKET}", adapters)
        async with Proxy(f"{host}:{port}", seed).running() as proxy:
            yield proxy
    finally:
        server.stop()


def environment(proxy: Proxy) -> Mapping[str, str]:
    """Return what leads the server's driver to the proxy."""
    return {
        "AWS_ENDPOINT_URL": f"http://{proxy.address}",
        "AWS_ACCESS_KEY_ID": "chaos",
        "AWS_SECRET_ACCESS_KEY": "chaos",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _fill(bucket: str, adapters: Path) -> None:
    _put(bucket, b"")
    for path in adapters.rglob("*"):
        if path.suffix in (".safetensors", ".json"):
            for folder in ("open", "pinned"):
                name = path.relative_to(adapters).as_posix()
                _put(f"{bucket}/{folder}/{name}", path.read_bytes())


def _put(url: str, content: bytes) -> None:
    request = urllib.request.Request(
        url, data=content, method="PUT", headers={"Content-Type": "application/octet-stream"}
    )
    urllib.request.urlopen(request, timeout=PUT_SECONDS).close()
