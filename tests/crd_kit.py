"""What an API server makes of a custom resource, without one.

Owns the three parts of its judgement: the structural schema (as JSON Schema), the list types, and
the rules in CEL. Prunes nothing: an unknown key is a problem, as with `--validate=strict`.
tests/cluster holds it to a real API server, with the same manifests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs
from cel_expr_python import cel  # type: ignore[import-untyped]  # has stubs, but no py.typed
from cel_expr_python.ext import ext_strings  # type: ignore[import-untyped]

from kars_router.config.openapi import resource_schema

Schema = Mapping[str, Any]
_SELF = cel.NewEnv(variables={"self": cel.Type.DYN}, extensions=[ext_strings.ExtStrings()])
_UNKNOWN = "x-kubernetes-preserve-unknown-fields"


def judge(manifest: Mapping[str, Any]) -> list[str]:
    """A line for everything that an API server would not accept; empty if it would."""
    kind = manifest["kind"]
    schema = _schema(kind)
    problems = [
        f"{each.instance_path}: {each.message}" for each in _validator(kind).iter_errors(manifest)
    ]
    # As in an API server, rules are evaluated only where the types are right.
    return problems or [*_list_problems(schema, manifest), *_rule_problems(schema, manifest)]


def children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The schemas of what is in a value, each with the key that it is for; "" for every one."""
    yield from schema.get("properties", {}).items()
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield "", schema[key]


@functools.cache
def _schema(kind: str) -> Schema:
    return resource_schema(kind)


@functools.cache
def _validator(kind: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(_json_schema(_schema(kind)))


def _json_schema(schema: Schema) -> dict[str, Any]:
    """A structural schema in the terms of JSON Schema."""
    made = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-") and key not in ("nullable", "description", "format")
    }
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string", *(["null"] if schema.get("nullable") else [])]
        # The first part says the same in the terms of OpenAPI, which has no null in it.
        made["allOf"] = [True, *made["allOf"][1:]]
    if "properties" in made:
        made["properties"] = {key: _json_schema(each) for key, each in made["properties"].items()}
        # An API server knows what is in the metadata; here anything goes.
        made["additionalProperties"] = bool(schema.get(_UNKNOWN))
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), Mapping):
            made[key] = _json_schema(made[key])
    return made


def _list_problems(schema: Schema, value: Any) -> Iterator[str]:
    by = schema.get("x-kubernetes-list-map-keys")
    if by and isinstance(value, list):
        keys = [[each.get(key) for key in by] for each in value]
        if any(keys.count(key) > 1 for key in keys):
            yield f"an entry is there twice: {keys}"
    for inner_schema, inner in _inner(schema, value):
        yield from _list_problems(inner_schema, inner)


def _rule_problems(schema: Schema, value: Any) -> Iterator[str]:
    if value is None:
        return
    for each in schema.get("x-kubernetes-validations", ()):
        if not _holds(each["rule"], json.dumps(_without_nulls(value))):
            yield each["message"]
    for inner_schema, inner in _inner(schema, value):
        yield from _rule_problems(inner_schema, inner)


def _inner(schema: Schema, value: Any) -> Iterator[tuple[Schema, Any]]:
    for key, inner in children(schema):
        if isinstance(value, list):
            yield from ((inner, each) for each in value)
        elif isinstance(value, Mapping) and key:
            yield from ((inner, value[key]) for _ in range(key in value))
        elif isinstance(value, Mapping):
            yield from ((inner, each) for each in value.values())


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


@functools.cache
def _compiled(rule: str) -> Any:
    return _SELF.compile(rule)


@functools.lru_cache(4096)
def _holds(rule: str, value: str) -> bool:
    found = _compiled(rule).eval(data={"self": json.loads(value)})
    plain = found.plain_value()
    assert isinstance(plain, bool), f"{rule} gives {plain!r}"
    return plain
