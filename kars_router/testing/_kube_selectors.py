"""Label and field selectors, as a list or a watch names them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Matcher = Callable[[Mapping[str, Any]], bool]

_REQUIREMENT: Final = re.compile(
    r"\s*(?P<key>[A-Za-z0-9._/-]+)\s+(?P<verb>in|notin)\s*\((?P<values>[^)]*)\)\s*(?:,|$)"
    r"|\s*(?P<not>!?)(?P<name>[A-Za-z0-9._/-]+)\s*(?:(?P<sign>==|=|!=)\s*(?P<value>[^,\s]*))?\s*(?:,|$)"
)


def matcher(labels: str, fields: str) -> Matcher:
    """Makes what tells whether an object is selected.

    Raises:
        ValueError: a selector cannot be understood.
    """
    tests = [*_label_tests(labels), *_field_tests(fields)]
    return lambda manifest: all(test(manifest) for test in tests)


def _label_tests(selector: str) -> list[Matcher]:
    tests, position = [], 0
    while position < len(selector):
        found = _REQUIREMENT.match(selector, position)
        if found is None or found.end() == position:
            raise ValueError(f"unable to parse requirement: {selector!r}")
        position = found.end()
        tests.append(_label_test(found))
    return tests


def _label_test(found: re.Match[str]) -> Matcher:
    key = found["key"] or found["name"]
    if found["verb"]:
        values = {each.strip() for each in found["values"].split(",")}
        wanted = found["verb"] == "in"
        return lambda manifest: (_label(manifest, key) in values) is wanted
    if found["sign"]:
        value, wanted = found["value"], found["sign"] != "!="
        return lambda manifest: (_label(manifest, key) == value) is wanted
    wanted = not found["not"]
    return lambda manifest: (_label(manifest, key) is not None) is wanted


def _label(manifest: Mapping[str, Any], key: str) -> str | None:
    value = (manifest["metadata"].get("labels") or {}).get(key)
    return None if value is None else str(value)


def _field_tests(selector: str) -> list[Matcher]:
    return [_field_test(each) for each in selector.split(",") if each]


def _field_test(requirement: str) -> Matcher:
    path, sign, value = requirement.partition("!=" if "!=" in requirement else "=")
    names = path.strip().split(".")
    value = value.removeprefix("=").strip()

    def test(manifest: Mapping[str, Any]) -> bool:
        found: Any = manifest
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return (str(found or "") == value) is (sign == "=")

    return test
