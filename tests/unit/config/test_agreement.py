"""Whatever a custom resource holds, its schema and the reader agree on it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import resource_table
from crd_kit import judge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.config.spec_kit import LEFT_OUT, VALUES, spec_of

from kars_router.config.problems import InvalidConfigError
from kars_router.config.resources import SPECS, structure_resource
from kars_router.config.shapes import fields_by_key, is_map, is_section, is_tuple


def accepted(manifest: dict[str, Any]) -> list[str]:
    try:
        structure_resource(manifest)
    except InvalidConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("kind", SPECS)
@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_schema_and_the_reader_agree(kind: str, data: st.DataObject) -> None:
    manifest = resource_table.manifest(kind, data.draw(spec_of(kind)))
    said, judged = accepted(manifest), judge(manifest)
    assert bool(said) == bool(judged), (manifest, said, judged)


@pytest.mark.parametrize("mark", VALUES, ids=str)
def test_a_value_is_right_or_wrong_for_both(mark: Any) -> None:
    """Each value on its own, where a key of its kind is found."""
    for kind, path in places(mark):
        right, wrong = VALUES[mark]
        for value in [*right, *wrong]:
            manifest = with_value(kind, path, value)
            said, judged = accepted(manifest), judge(manifest)
            assert bool(said) == bool(judged), (manifest, said, judged)


def places(mark: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Keys of this kind right below a spec or a section of it; lists count as their entries."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for kind, cls in SPECS.items():
        for key, each in fields_by_key(cls).items():
            inner: Any = each.type
            if holds(inner, mark):
                found.append((kind, (key,)))
            elif is_section(inner):
                found += (
                    (kind, (key, name))
                    for name, one in fields_by_key(inner).items()
                    if holds(one.type, mark) and (inner, name) not in LEFT_OUT
                )
    return found


def holds(kind: Any, mark: Any) -> bool:
    return kind == mark or any(each == mark for each in get_args(kind))


def with_value(kind: str, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    held: Any = SPECS[kind]
    for key in path:
        held = fields_by_key(held)[key].type
    made: Any = [value] if is_tuple(held) else {"a": value} if is_map(held) else value
    for key in reversed(path):
        made = {key: made}
    spec = {"url": "http://a", **made} if kind == "McpServer" else made
    return resource_table.manifest(kind, spec)
