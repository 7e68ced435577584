"""What the operator may use of the router: decision 15 has the list and the reasons."""

from __future__ import annotations

import ast
from pathlib import Path

import kars_operator
import pytest

ALLOWED = {
    "cli.egress_options",
    "cli.errors",
    "cli.examples",
    "config",
    "egress",
    "errors",
    "guard",
    "kube",
    "model",
    "plugins",
    "telemetry",
    "transports",
}
MODULES = sorted(Path(kars_operator.__file__).parent.glob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules of the router that a module names, without the package's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "kars_router":
                names = [f"kars_router.{each.name}" for each in node.names]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        else:
            continue
        found |= {each.removeprefix("kars_router.") for each in names if "kars_router." in each}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_uses_what_is_meant_to_be_used(path: Path) -> None:
    wrong = {
        each
        for each in imported(path)
        if each not in ALLOWED and each.partition(".")[0] not in ALLOWED
    }
    assert wrong == set()


def test_there_are_imports_to_look_at() -> None:
    assert "kube" in set().union(*map(imported, MODULES))
