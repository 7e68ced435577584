"""The documentation: every link leads somewhere, every snippet is what it claims to be."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT, files, relative
from ruamel.yaml import YAML

PAGES = {relative(path): path for path in files(".md")}
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\((?P<target>[^)\s]+)\)|!\[[^\]\n]*\]\((?P<image>[^)\s]+)\)")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
KARS = Path(sys.executable).with_name("kars")


def prose(text: str) -> str:
    """A page without its code, in which brackets are no links and `#` is no heading."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings can be reached by, as the usual renderers make them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def has_anchor(page: Path, anchor: str) -> bool:
    """Whether a page has that heading; every page has the empty one."""
    return not anchor or anchor in anchors(page.read_text(encoding="utf-8"))


def blocks() -> list[Any]:
    """Each code block as a test parameter, language and text, named by its page and line."""
    found = []
    for name, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            block = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            found.append(pytest.param(match["language"], block, id=f"{name}:{line}"))
    return found


BLOCKS = blocks()
BLOCKS_WITH_SERVERS = [
    block
    for block in BLOCKS
    if block.values[0] == "yaml" and re.search(r"^servers:", block.values[1], re.MULTILINE)
]


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_lead_to_a_file_and_a_heading(name: str) -> None:
    page = PAGES[name]
    broken = []
    for match in LINK.finditer(prose(page.read_text(encoding="utf-8"))):
        target = match["target"] or match["image"]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not (there.exists() and there.is_relative_to(ROOT) and has_anchor(there, anchor)):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    index = PAGES["docs/README.md"]
    linked = {
        (index.parent / match["target"]).resolve()
        for match in LINK.finditer(index.read_text(encoding="utf-8"))
        if match["target"]
    }
    pages = {path for name, path in PAGES.items() if name.startswith("docs/")} - {index}
    assert sorted(relative(path) for path in pages - linked) == []


def parses_as_shell(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def parses_as_python(block: str) -> None:
    compile(block, "snippet", "exec", dont_inherit=True)


def parses_as_yaml(block: str) -> None:
    assert list(YAML(typ="safe").load_all(block))


# Every code block says which of these it is; what no one executes is `text`.
LANGUAGES: dict[str, Callable[[str], object]] = {
    "ini": lambda block: configparser.ConfigParser().read_string(block),
    "json": json.loads,
    "python": parses_as_python,
    "sh": parses_as_shell,
    "text": str,
    "toml": tomllib.loads,
    "yaml": parses_as_yaml,
}


@pytest.mark.parametrize(("language", "block"), BLOCKS)
def test_a_code_block_says_its_language_and_is_written_in_it(language: str, block: str) -> None:
    LANGUAGES[language](block)


@pytest.mark.parametrize(("language", "block"), BLOCKS_WITH_SERVERS)
def test_a_configuration_in_the_docs_is_valid(language: str, block: str, tmp_path: Path) -> None:
    snippet = tmp_path / "kars.yaml"
    snippet.write_text(block, encoding="utf-8")
    done = subprocess.run([KARS, "check", snippet], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def commands() -> list[str]:
    """Each `kars` subcommand that a shell snippet or a sentence of our pages mentions."""
    found = set()
    for path in PAGES.values():
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(
            r"(?:^|[`\s/])kars ((?:[a-z]+)(?: (?:verify|tail))?)(?=[\s`])", text
        ):
            found.add(match[1])
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_that_pages_mention_exist(command: str) -> None:
    done = subprocess.run(
        [KARS, *command.split(), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
