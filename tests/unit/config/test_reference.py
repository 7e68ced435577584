"""docs/configuration.md has every key with its default, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import attrs
import pytest
from repository import ROOT

from kars_router.config.addresses import Address
from kars_router.config.converter import to_plain
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import NO_KEY, key_of
from kars_router.config.schema import Config

PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `(?P<key>[^`]+)` \| [^|]+ \| (?P<default>[^|]+) \| [A-Z*][^|]+\. \|$", re.MULTILINE
)
# What is not simply the schema's default.
SPECIAL = {
    "servers": "needed",
    "servers.NAME.url": "needed",
    "agentAuth.jwt.issuer": "needed",
    "agentAuth.jwt.audience": "needed",
    "policies[].rules[].effect": "needed",
    "policies[].rules[].redact.kinds": "all of them",
    "policies[].agtProfile.inline": "needed",
    "state": "`$KARS_STATE_DIR`, else `~/.kars`",
}


def section_in(kind: Any) -> tuple[type[Any] | None, str]:
    """The section that a type is or holds, and how the page writes the way into it."""
    if attrs.has(kind):
        return (None, "") if kind is Address else (kind, ".")
    found = next((each for each in get_args(kind) if attrs.has(each) and each is not Address), None)
    if get_origin(kind) is tuple:
        return found, "[]."
    return found, ".NAME." if get_origin(kind) is FrozenMap else "."


def defaults(cls: type[Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Each key with its default as the page writes it; a section that is always there is only
    its keys."""
    plain = to_plain(cls())
    for each in attrs.fields(attrs.resolve_types(cls)):
        if each.metadata == NO_KEY:
            continue
        path = f"{prefix}{key_of(each.name)}"
        inner, way = section_in(each.type)
        if inner is not each.type:
            yield path, SPECIAL.get(path) or written(plain[key_of(each.name)])
        if inner is not None:
            yield from defaults(inner, f"{path}{way}")


def written(value: object) -> str:
    if value in (None, "", [], {}):
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


SCHEMA = dict(defaults(Config, ""))
DOCUMENTED = {row["key"]: row["default"] for row in ROW.finditer(PAGE)}


def test_the_walk_finds_sections_in_lists_and_in_sections() -> None:
    assert {
        "policies",
        "policies[].rules[].redact.fields",
        "servers.NAME.oauth",
        "servers.NAME.oauth.grant",
        "servers.NAME.timeouts.call",
        "audit.path",
    } <= SCHEMA.keys()
    assert not {"policies[].rules[].redact", "limits", "servers.NAME.timeouts"} & SCHEMA.keys()


@pytest.mark.parametrize("key", SCHEMA)
def test_every_key_is_documented_with_its_default(key: str) -> None:
    assert DOCUMENTED.get(key, "no row in docs/configuration.md") == SCHEMA[key]


def test_no_other_key_is_documented() -> None:
    assert sorted(DOCUMENTED.keys() - SCHEMA.keys()) == []


def test_every_row_is_understood() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `[a-z]", line)]
    assert len(rows) == len(DOCUMENTED) == len(SCHEMA)
