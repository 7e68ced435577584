"""Every hook is documented, used by ourselves, and tested under its own name."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT, files, relative

from kars_router import hookspecs

HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if name.startswith("kars_") and inspect.isfunction(function)
}
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def is_implementation(function: Function) -> bool:
    """Whether it is marked `@hookimpl`, with arguments or without."""
    marks = [each.func if isinstance(each, ast.Call) else each for each in function.decorator_list]
    return any(isinstance(mark, ast.Name) and mark.id == "hookimpl" for mark in marks)


def users() -> dict[str, set[str]]:
    """Our own implementations: hook to files."""
    found: dict[str, set[str]] = {}
    for path in files(".py"):
        name = relative(path)
        if name.startswith(("kars_router/builtins/", "plugins/")) and "/tests/" not in name:
            for function in functions(path):
                if is_implementation(function):
                    found.setdefault(function.name, set()).add(name)
    return found


def named_tests() -> set[str]:
    """The names of all test functions."""
    return {
        function.name
        for path in files(".py")
        if path.name.startswith("test_")
        for function in functions(path)
        if function.name.startswith("test_")
    }


USERS = users()
TESTS = named_tests()


def test_there_are_hooks() -> None:
    assert len(HOOKS) >= 13
    assert all(hasattr(hook, f"{hookspecs.PROJECT}_spec") for hook in HOOKS.values())


def sections(docstring: str) -> set[str]:
    return set(re.findall(r"^(Args|Returns|Raises):$", docstring, re.MULTILINE))


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_docstring_that_says_what_goes_in_and_out(name: str) -> None:
    hook = HOOKS[name]
    docstring = inspect.getdoc(hook) or ""
    signature = inspect.signature(hook)
    assert ("Args" in sections(docstring)) is bool(signature.parameters)
    assert ("Returns" in sections(docstring)) is (signature.return_annotation != "None")
    undocumented = [
        parameter
        for parameter in signature.parameters
        if not re.search(rf"^    {parameter}: \S", docstring, re.MULTILINE)
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_heading_with_its_arguments_and_a_text(name: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    heading = f"### {name}({arguments})\n"
    assert heading in PAGE
    text = PAGE.partition(heading)[2].partition("\n#")[0].strip()
    assert len(text) > 40


def test_no_hook_is_documented_that_there_is_not() -> None:
    assert set(re.findall(r"^### (kars_\w+)\(", PAGE, re.MULTILINE)) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_user_of_ours(name: str) -> None:
    assert USERS.get(name)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_a_test_of_its_own_name(name: str) -> None:
    named = re.compile(rf"test_{name}(_|$)")
    assert [test for test in TESTS if named.match(test)]


def test_nothing_implements_a_hook_that_there_is_not() -> None:
    assert {name: where for name, where in USERS.items() if name not in HOOKS} == {}


def test_an_implementation_is_recognised() -> None:
    code = "@hookimpl\ndef a(): ...\n@hookimpl(trylast=True)\ndef b(): ...\n@other\ndef c(): ..."
    body = ast.parse(code).body
    assert [is_implementation(each) for each in body if isinstance(each, Function)] == [
        True,
        True,
        False,
    ]
