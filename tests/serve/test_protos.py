"""The wire contract and the code that is generated from it."""

from pathlib import Path

from scripts.generate_protos import ROOT, generate


def test_generated_code_is_current(tmp_path: Path) -> None:
    """Code that lags behind its contract speaks another one."""
    generate(tmp_path)

    made = {path.name: path.read_bytes() for path in (tmp_path / "lokr_serve" / "v1").iterdir()}
    kept = {
        path.name: path.read_bytes()
        for path in (ROOT / "lokr_serve" / "v1").iterdir()
        if "_pb2" in path.name and path.suffix in (".py", ".pyi")
    }
    assert made == kept
