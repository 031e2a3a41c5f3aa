"""Generate ``lokr_serve/v1`` from ``protos``: run it from anywhere, with or without a target."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(target: Path) -> None:
    """Write the Python modules, their type stubs and the gRPC stubs under ``target``.

    Raises:
        RuntimeError: The compiler refused a file; its message is on standard error.
    """
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{files('grpc_tools') / '_proto'}",
        *(f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")),
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc failed on {PROTOS}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
