"""The list of faults, tests/FAULTS.md, does not rot: the tests that it names are there, and its messages are the program's."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.launch import ROOT

LIST = ROOT / "tests" / "FAULTS.md"
LIBRARIES = ("input should be", "No space left on device")
"""What libraries say in a message."""
IN_COMMON = 12
"""Characters in a row that a message has in common with a string of the program, between what that fills in."""


def rows() -> list[list[str]]:
    """The cells of every row: what is wrong, what the program says, what is left, tests."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|") and "::" in line]


@cache
def strings() -> str:
    """The strings of the program, and the parts of those that are formatted."""
    files = [*(ROOT / "gdps_ds").rglob("*.py"), *(ROOT / "launchers").glob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_no_fault_is_listed_twice() -> None:
    assert len(rows()) >= 50
    for column in (0, 1):
        cells = [row[column] for row in rows()]
        assert sorted(set(cells)) == sorted(cells)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_names_tests_that_exist_and_says_what_the_program_says(row: list[str]) -> None:
    assert len(row) == 4
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[3])
    assert len(named) == row[3].count("::")
    assert [f"{file}::{name}" for file, name in named if name not in names_in(file)] == []
    for message in re.findall(r"`([^`]+)`", row[1]):
        parts = {message[first : first + IN_COMMON] for first in range(max(1, len(message) - IN_COMMON + 1))}
        assert any(part in strings() for part in parts) or any(part in message for part in LIBRARIES), message
