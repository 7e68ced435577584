"""The release notes: every fragment can be used, and a change is not released without one."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest
from repository import ROOT

FRAGMENTS = ROOT / "newsfragments"
NAME = re.compile(r"(?:\d+|\+[a-z0-9-]+)\.(?P<type>[a-z]+)(?:\.\d+)?\.md")


def types() -> list[str]:
    """The fragment types that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [entry["directory"] for entry in project["tool"]["towncrier"]["type"]]


def fragments() -> list[str]:
    return sorted(path.name for path in FRAGMENTS.iterdir() if path.name != "README.md")


@pytest.mark.parametrize("name", fragments())
def test_a_fragment_is_named_and_written_as_the_readme_says(name: str) -> None:
    match = NAME.fullmatch(name)
    assert match, f"{name}: see newsfragments/README.md"
    assert match["type"] in types()
    text = (FRAGMENTS / name).read_text(encoding="utf-8")
    assert re.fullmatch(r"[A-Z`].*[.)]\n", text, re.DOTALL), "whole sentences and a final newline"
    assert not text.startswith("#")


def test_the_readme_explains_exactly_the_types_that_exist() -> None:
    readme = (FRAGMENTS / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE) == types()


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def test_what_changed_since_the_last_release_has_a_fragment() -> None:
    if shutil.which("git") is None or not git("rev-parse", "HEAD"):
        pytest.skip("no history to compare with: not a git checkout")
    release = git("describe", "--tags", "--abbrev=0", "--match", "v*")
    if release and not git("diff", "--name-only", release, "--", "kars_router", "plugins"):
        return
    assert fragments(), f"the code changed since {release or 'the beginning'}"
