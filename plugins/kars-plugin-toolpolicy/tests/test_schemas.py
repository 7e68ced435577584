from __future__ import annotations

from typing import Any

import pytest
from kars_plugin_toolpolicy.schemas import Schema, SchemaError, SchemaFailed

from kars_router.config.frozenmap import FrozenMap


@pytest.mark.parametrize(
    ("schema", "arguments", "misfits"),
    [
        ({}, {"a": 1}, ()),
        ({"type": "object"}, {}, ()),
        ({"required": ["path"]}, {}, ("the whole (required)",)),
        (
            {"properties": {"path": {"pattern": "^/srv/"}}},
            {"path": "SECRET"},
            ("/path (pattern)",),
        ),
        (
            {"properties": {"a/b~c": {"items": {"enum": ["x"]}}}},
            {"a/b~c": ["x", "SECRET"]},
            ("/a~1b~0c/1 (enum)",),
        ),
        ({"additionalProperties": {"type": "string"}}, {"SECRET": 1}, ("/* (type)",)),
        ({"additionalProperties": False}, {"SECRET": 1}, ("the whole (additionalProperties)",)),
        ({"propertyNames": {"maxLength": 3}}, {"SECRET": 1}, ("the whole (propertyNames)",)),
        (
            {"$defs": {"n": {"maximum": 5}}, "properties": {"n": {"$ref": "#/$defs/n"}}},
            {"n": 6},
            ("/n (maximum)",),
        ),
        ({"properties": {"n": {"const": 1}}}, {"n": 1.0}, ()),
        ({"properties": {"n": {"maximum": 5}}}, {"n": 10**40}, ("/n (maximum)",)),
        ({"properties": {"u": {"format": "uuid"}}}, {"u": "SECRET"}, ("/u (format)",)),
        ({"unevaluatedProperties": False}, {"x": 1}, ("the whole (unevaluatedProperties)",)),
        (False, {}, None),
    ],
)
def test_places_and_keywords_are_named_and_values_are_not(
    schema: Any, arguments: dict[str, Any], misfits: tuple[str, ...] | None
) -> None:
    if misfits is None:
        with pytest.raises(SchemaError, match="which is a mapping"):
            Schema.compile(schema)
    else:
        assert Schema.compile(schema).misfits(arguments) == misfits


def test_only_some_places_are_named_and_each_once() -> None:
    schema = Schema.compile({"properties": {name: {"type": "string"} for name in "abcde"}})
    assert len(schema.misfits(dict.fromkeys("abcde", 1))) == 3
    names = Schema.compile({"additionalProperties": {"type": "string"}})
    assert names.misfits(dict.fromkeys("abcde", 1)) == ("/* (type)",)


def test_a_schema_may_be_frozen_as_the_configuration_has_it() -> None:
    schema = FrozenMap({"required": ("a", "b"), "properties": FrozenMap({"a": FrozenMap({})})})
    assert Schema.compile(schema).misfits({"a": 1}) == ("the whole (required)",)


@pytest.mark.parametrize(
    ("schema", "path", "complaint"),
    [
        ({"type": "strin"}, ("type",), "is no JSON Schema"),
        ({"properties": {"a": {"minLength": -1}}}, ("properties", "a", "minLength"), "less than"),
        ({"properties": {"a": {"pattern": "("}}}, ("properties", "a", "pattern"), "regex"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, ("properties", "a", "pattern"), "regex"),
        ({"properties": {"a": {"format": "colour"}}}, None, "colour"),
        ({"$ref": "#/$defs/nope"}, (), "does not exist"),
        ({"$ref": "http://127.0.0.1:9/schema"}, (), "Retrieval is disabled"),
        ({"$ref": "file:///etc/hostname"}, (), "Retrieval is disabled"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, ("$schema",), "2020-12"),
        ({"$schema": 7}, ("$schema",), "2020-12"),
    ],
)
def test_a_schema_that_cannot_be_used(
    schema: dict[str, Any], path: tuple[str, ...] | None, complaint: str
) -> None:
    with pytest.raises(SchemaError) as refused:
        Schema.compile(schema)
    assert path is None or refused.value.path == path
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_validated_is_an_error_of_its_own() -> None:
    schema = Schema.compile({"properties": {"a": {"type": "string", "pattern": "a"}}})
    for wrong in ({"a": "\ud800"}, {"a": object()}):
        with pytest.raises(SchemaFailed):
            schema.misfits(wrong)


def test_a_pattern_takes_linear_time() -> None:
    schema = Schema.compile({"properties": {"a": {"pattern": "^(a+)+$"}}})
    assert schema.misfits({"a": "a" * 200_000 + "b"}) == ("/a (pattern)",)
