"""The house has floors: imports point down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.launch import ROOT

# A package may import itself, those below it, and the leaves that everybody may know.
LEAVES = {"config", "config_decode", "config_file", "deepspeed_file", "fields", "files", "launching", "options", "plan"}
BELOW = {
    "config": set(),
    "config_decode": set(),
    "config_file": set(),
    "deepspeed_file": set(),
    "fields": set(),
    "files": set(),
    "launching": set(),
    "options": set(),
    "plan": set(),
    "analysis": set(),
    "model": {"analysis"},
    "data": {"analysis"},
    "distributed": {"analysis", "model", "data"},
    "evaluation": {"analysis", "model", "data", "distributed"},
    "reporting": {"analysis", "data", "evaluation"},
    "training": {"analysis", "model", "data", "distributed", "evaluation", "reporting"},
}
HEAVY = {
    "analysis": {"transformers", "deepspeed"},
    "model": {"deepspeed"},
    "data": {"transformers", "deepspeed"},
    "config": {"torch", "transformers", "deepspeed"},
    "config_file": {"torch", "transformers", "deepspeed"},
    "deepspeed_file": {"torch", "transformers", "deepspeed"},
    "plan": {"torch", "transformers", "deepspeed"},
    "reporting": {"deepspeed", "transformers"},
}
FILES = sorted((ROOT / "gdps_ds").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(path: Path) -> str:
    return path.relative_to(ROOT / "gdps_ds").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    if floor(path) == "__init__":
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("gdps_ds.")}
    assert ours - {floor(path)} - LEAVES <= BELOW[floor(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_on_their_floor(path: Path) -> None:
    names = imported(path)
    assert not {name.split(".")[0] for name in names} & HEAVY.get(floor(path), set())
    if floor(path) != "distributed":
        assert not any(name.startswith(("torch.distributed", "deepspeed")) for name in names)


def test_no_file_or_function_is_too_long() -> None:
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 70, f"{path}:{node.lineno} {node.name}"
