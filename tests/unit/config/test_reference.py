"""docs/configuration.md has every key with its default, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from repository import ROOT

from kars_router.config.converter import to_plain
from kars_router.config.schema import Config, Server

PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `(?P<key>[^`]+)` \| [^|]+ \| (?P<default>[^|]+) \| [A-Z*][^|]+\. \|$", re.MULTILINE
)
# What is not simply the schema's default.
SPECIAL = {
    "servers": "needed",
    "servers.NAME.url": "needed",
    "state": "`$KARS_STATE_DIR`, else `~/.kars`",
}


def defaults(plain: dict[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    """Each key with its default as the page writes it; a section is only its keys."""
    for key, value in plain.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from defaults(value, f"{path}.")
        elif path in SPECIAL:
            yield path, SPECIAL[path]
        elif isinstance(value, bool):
            yield path, f"`{str(value).lower()}`"
        else:
            yield path, f"`{value}`" if value not in (None, [], {}) else "none"


SCHEMA = dict([*defaults(to_plain(Config()), ""), *defaults(to_plain(Server()), "servers.NAME.")])
DOCUMENTED = {row["key"]: row["default"] for row in ROW.finditer(PAGE)}


@pytest.mark.parametrize("key", SCHEMA)
def test_every_key_is_documented_with_its_default(key: str) -> None:
    assert DOCUMENTED.get(key, "no row in docs/configuration.md") == SCHEMA[key]


def test_no_other_key_is_documented() -> None:
    assert sorted(DOCUMENTED.keys() - SCHEMA.keys()) == []


def test_every_row_is_understood() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `[a-z]", line)]
    assert len(rows) == len(DOCUMENTED) == len(SCHEMA)
