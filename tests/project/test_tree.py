"""Rules about what stands in the tree at all, and about who calls whom."""

from __future__ import annotations

import configparser
import re
import tomllib

import module_budget
import pytest
from repository import ROOT, files, relative

# Written so that this file does not contain what it looks for.
BANNED = {
    "a path of one machine": re.compile(r"(?<![\w.~-])/(?:wor[k]|roo[t])/"),
    "a package registry's host": re.compile(
        r"npmj[s]\.org|pythonhoste[d]\.org|py[p]i\.org|deb\.debia[n]|crate[s]\.io|proxy\.golan[g]"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KE[Y]-----"),
}
BANNED_IN_CODE = {
    "something unfinished": re.compile(r"NotImplemente[d]Error|\b(?:TOD[O]|FIXM[E]|XX[X])\b"),
    "code hidden from coverage": re.compile(r"pragma: n[o] cover"),
    "another event loop": re.compile(r"^\s*(?:import|from) (?:asynci[o]|anyi[o])\b", re.MULTILINE),
}
# Peers that run on what their SDK runs on, in environments of their own.
FOREIGN = ("bench/peers/programs/", "tests/conformance/", "tests/sdk/")


def found(patterns: dict[str, re.Pattern[str]], *suffixes: str) -> list[str]:
    """One `file:line: what` for each place in our files that matches a pattern."""
    places = []
    for path in files(*suffixes):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for what, pattern in patterns.items():
            if what == "another event loop" and relative(path).startswith(FOREIGN):
                continue
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                places.append(f"{relative(path)}:{line}: {what}")
    return places


def test_nothing_of_one_machine_and_no_registry_is_named() -> None:
    assert found(BANNED) == []


def test_code_is_finished_and_runs_on_trio() -> None:
    assert found(BANNED_IN_CODE, ".py") == []


@pytest.mark.parametrize("text", ["cd /wor" + "k/main", "open('/roo" + "t/x')"])
def test_a_machine_path_is_recognised(text: str) -> None:
    assert BANNED["a path of one machine"].search(text)


@pytest.mark.parametrize("text", ["tests/wor" + "k/x", "~/roo" + "t/"])
def test_a_relative_path_is_no_machine_path(text: str) -> None:
    assert not BANNED["a path of one machine"].search(text)


def test_every_module_is_within_its_budget() -> None:
    too_long = [
        f"{path}: {lines}"
        for lines, path in module_budget.sizes(ROOT)
        if lines > module_budget.FAIL_ABOVE
    ]
    assert too_long == []


def readme_commands() -> list[str]:
    """The README's first two shell blocks: the demo, then the tests."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [
        block.strip()
        for block in re.findall(r"^```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[:2]
    ]


def test_readme_has_two_commands_of_one_line_each() -> None:
    demo, tests = readme_commands()
    assert "\n" not in demo + tests
    assert demo.endswith("kars demo")
    assert "tox" in tests


def test_ci_runs_the_commands_of_the_readme_word_for_word() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert [command for command in readme_commands() if command not in ci] == []


def test_ci_runs_every_environment() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    # The README's command runs the tests, on the Python at hand.
    named = {name.strip() for name in tox["tox"]["env_list"].split(",")} - {"py311"}
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    alone = re.findall(r"^environment (\S+)", ci, re.MULTILINE)
    together = dict(re.findall(r"^(paired|waiting)=(\S+)$", ci, re.MULTILINE))
    for name in ("paired", "waiting"):
        assert re.search(rf'^step {name} .* -e "\${name}"$', ci, re.MULTILINE)
    assert named - {*alone, *",".join(together.values()).split(",")} == set()
    assert {name for name in named if f"testenv:{name}" not in tox} == set()


def test_pure_modules_are_held_to_it_as_soon_as_they_exist() -> None:
    contracts = configparser.ConfigParser(allow_no_value=True)
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    listed = set(contracts["importlinter:contract:pure"]["source_modules"].split())
    package = ROOT / "kars_router"
    pure = {
        f"kars_router.{name}"
        for name in ("egress", "errors", "guard", "loss", "model", "pinning", "policy", "wire")
        if (package / name).is_dir() or (package / f"{name}.py").is_file()
    }
    assert listed == pure


def test_the_command_and_the_typing_marker_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"kars": "kars_router.cli.main:main"}
    assert (ROOT / "kars_router" / "py.typed").is_file()
