"""Dependencies: each is declared, used, and justified in one place."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository import ROOT, files, relative

# Where what is imported is not called what is installed.
IMPORTED_AS = {
    "prometheus-client": "prometheus_client",
    "pyjwt": "jwt",
    "ruamel-yaml": "ruamel",
    "trio-websocket": "trio_websocket",
}
RECORD = ROOT / "docs" / "decisions" / "0002-dependencies.md"


def pyproject() -> dict[str, list[str]]:
    """Requirements by where they stand: `package`, then each extra and dependency group."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = data["project"]
    return {
        "package": project["dependencies"],
        **project["optional-dependencies"],
        **data["dependency-groups"],
    }


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported() -> dict[str, str]:
    """Each foreign top-level module that the package imports, and one file that does."""
    modules: dict[str, str] = {}
    for path in files(".py"):
        if not relative(path).startswith("kars_router/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                dotted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                dotted = [node.module or ""]
            else:
                continue
            for name in dotted:
                modules.setdefault(name.split(".")[0], relative(path))
    return {
        name: where
        for name, where in modules.items()
        if name not in sys.stdlib_module_names and name != "kars_router"
    }


def test_the_package_imports_what_it_declares_and_declares_what_it_imports() -> None:
    declared = {IMPORTED_AS.get(name, name) for name in names(pyproject()["package"])}
    used = imported()
    undeclared = {name: where for name, where in used.items() if name not in declared}
    assert undeclared == {}, "imported, not declared"
    assert declared - set(used) == set(), "declared, not imported"


def test_every_dependency_is_justified_and_nothing_else_is() -> None:
    declared = set().union(*(names(lines) for lines in pyproject().values()))
    record = RECORD.read_text(encoding="utf-8").partition("\n## What is not here")[0]
    justified = set(map(canonicalize_name, re.findall(r"^\| `([\w.-]+)` \|", record, re.MULTILINE)))
    assert justified == declared | {"hatchling", "tox"}


def test_a_version_bound_has_its_reason_on_the_same_line() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    bounds = re.findall(r'^.*"[\w.\[\]-]+(?:[<>=~!]=?)[\d.]+".*$', text, re.MULTILINE)
    unexplained = [line for line in bounds if "#" not in line and "minversion" not in line]
    assert bounds, "the pattern has to find the bounds there are"
    assert unexplained == []
