"""Files and variables, read by us and by pip: its help shows the index that it would use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kars_router.update import pip_settings

FILES = {
    "global": "xdg/pip/pip.conf",
    "legacy": "home/.pip/pip.conf",
    "user": "home/.config/pip/pip.conf",
    "named": "named.conf",
}


def index(name: str) -> str:
    return f"https://{name}.test/simple"


def section(name: str, url: str) -> str:
    return f"[{name}]\nindex-url = {url}\n"


CASES = {
    "nothing": ({}, {}),
    "global": ({"global": section("global", index("g"))}, {}),
    "user over global": (
        {"global": section("global", index("g")), "user": section("global", index("u"))},
        {},
    ),
    "user over legacy": (
        {"legacy": section("global", index("l")), "user": section("global", index("u"))},
        {},
    ),
    "install over global of a stronger file": (
        {"global": section("install", index("i")), "user": section("global", index("u"))},
        {},
    ),
    "empty takes away": (
        {"global": section("global", index("g")), "user": section("global", "")},
        {},
    ),
    "other sections do not count": ({"user": section("download", index("d"))}, {}),
    "spelling": ({"user": f"[global]\nINDEX_URL: {index('s')}\n"}, {}),
    "dashes": ({"user": f"[global]\n--index-url: {index('s')}\n"}, {}),
    "inherited by sections": ({"user": f"[DEFAULT]\nindex-url={index('d')}\n[global]\n"}, {}),
    "default without sections": ({"user": f"[DEFAULT]\nindex-url={index('d')}\n"}, {}),
    "variable": ({"user": section("install", index("i"))}, {"PIP_INDEX_URL": index("v")}),
    "empty variable": ({"user": section("global", index("u"))}, {"PIP_INDEX_URL": ""}),
    "no files": ({"user": section("global", index("u"))}, {"PIP_CONFIG_FILE": os.devnull}),
    "named": (
        {"user": section("global", index("u")), "named": section("global", index("n"))},
        {"PIP_CONFIG_FILE": "{named}"},
    ),
    "named without an index": (
        {"user": section("global", index("u")), "named": "[global]\ntimeout = 1\n"},
        {"PIP_CONFIG_FILE": "{named}"},
    ),
    "named but not there": (
        {"user": section("global", index("u"))},
        {"PIP_CONFIG_FILE": "/not/there"},
    ),
    "comments": ({"user": f"[global]\n# no\nindex-url = {index('c')}\n; no\n"}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_pip_itself_reads_the_same(name: str, tmp_path: Path) -> None:
    files, variables = CASES[name]
    for which, text in files.items():
        path = tmp_path / FILES[which]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    named = str(tmp_path / FILES["named"])
    given = {key: value.format(named=named) for key, value in variables.items()}
    given |= {"HOME": str(tmp_path / "home"), "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--help"],
        env={**given, "COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = re.search(r"\(default\s+(\S+)\)", done.stdout)
    assert said is not None
    ours = pip_settings.read(given, Path(sys.prefix), sys.platform)
    if ours.wants_default:
        assert not said[1].endswith(".test/simple")
    else:
        assert [each.url for each in ours.indexes] == [said[1]]
