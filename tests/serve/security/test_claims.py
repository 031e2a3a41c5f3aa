"""The claims of docs/security.md have their tests."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()
TEST = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_\w+)`")
NAMED = sorted(set(TEST.findall(PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_each_test_that_a_claim_names_exists(file: str, name: str) -> None:
    """A test that is renamed, or removed, would leave a claim that nothing shows."""
    tree = ast.parse((ROOT / file).read_text())
    functions = (
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )

    assert name in {function.name for function in functions}


def test_each_claim_names_a_test() -> None:
    """Rows of the tables of claims, whose last column is for tests alone."""
    claimed = PAGE.split("## What is claimed")[1].split("## What is not protected")[0]
    rows = [line for line in claimed.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if row != "| claim | test |"]

    assert len(claims) > 40
    for claim in claims:
        tests = claim.rstrip(" |").rpartition(" | ")[2].split(", ")
        assert all(TEST.fullmatch(test) for test in tests), claim
