"""The schemas of the custom resources say what the reader says, and the exceptions have names."""

from __future__ import annotations

import pytest
import resource_table as table
from crd_kit import Schema, children, judge
from resource_mistakes import INVALID

from kars_router.config.openapi import resource_schema
from kars_router.config.problems import InvalidConfigError
from kars_router.config.resources import SPECS, structure_resource


def refused(manifest: table.Manifest) -> list[str]:
    """Where the reader finds something wrong."""
    try:
        structure_resource(manifest)
    except InvalidConfigError as error:
        return [problem.path for problem in error.found]
    return []


@pytest.mark.parametrize("name", table.VALID)
def test_both_accept(name: str) -> None:
    assert refused(table.VALID[name]) == []
    assert judge(table.VALID[name]) == []


@pytest.mark.parametrize("name", INVALID)
def test_both_refuse(name: str) -> None:
    manifest, path, _ = INVALID[name]
    assert path in refused(manifest)
    assert judge(manifest) != []


@pytest.mark.parametrize("name", INVALID)
def test_rules_say_what_is_wrong(name: str) -> None:
    manifest, _, said = INVALID[name]
    if not said.startswith("spec"):
        assert said in "\n".join(judge(manifest))


@pytest.mark.parametrize("name", table.REFUSED_BY_THE_READER)
def test_the_reader_alone_refuses(name: str) -> None:
    manifest, path = table.REFUSED_BY_THE_READER[name]
    assert refused(manifest) == [path]
    assert judge(manifest) == []


@pytest.mark.parametrize("name", table.REFUSED_BY_THE_API)
def test_an_api_server_alone_refuses(name: str) -> None:
    manifest, _ = table.REFUSED_BY_THE_API[name]
    assert refused(manifest) == []
    assert judge(manifest) != []


@pytest.mark.parametrize("name", table.DROPPED_BY_THE_API)
def test_the_reader_refuses_what_an_api_server_drops(name: str) -> None:
    manifest, path = table.DROPPED_BY_THE_API[name]
    assert refused(manifest) == [path]


@pytest.mark.parametrize("kind", SPECS)
def test_every_rule_is_broken_by_something_in_the_table(kind: str) -> None:
    manifests = [manifest for manifest, *_ in INVALID.values() if manifest["kind"] == kind]
    said = {problem for manifest in manifests for problem in judge(manifest)}
    schema = resource_schema(kind)
    assert len(messages(schema)) >= 2
    assert messages(schema) - said == set()


@pytest.mark.parametrize("kind", SPECS)
def test_no_list_is_merged_of_what_several_managers_allow(kind: str) -> None:
    types = list_types(resource_schema(kind))
    assert set(types) == {"atomic", "map"}


def list_types(schema: Schema) -> list[str]:
    own = [schema["x-kubernetes-list-type"]] if schema.get("type") == "array" else []
    return own + [found for _, inner in children(schema) for found in list_types(inner)]


def messages(schema: Schema) -> set[str]:
    own = {each["message"] for each in schema.get("x-kubernetes-validations", ())}
    return own.union(*(messages(inner) for _, inner in children(schema)))
