"""Schemas of the custom resources, from the classes that read them.

Owns what an API server is told of each type and each mark: a structural schema in OpenAPI v3, as
CustomResourceDefinitions hold it. `validations` owns the rules that span keys, `described` the
words. Pure. What a schema cannot say, such as whether a regular expression compiles, only the
reader says; docs/custom-resources.md lists that.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

from attrs import Attribute

from kars_router.config import marks, patterns, units
from kars_router.config.described import describe, describe_fields
from kars_router.config.marks import NEEDED
from kars_router.config.plain import to_plain
from kars_router.config.resource_rules import MOST_SERVERS
from kars_router.config.resources import LONGEST_NAMES, SPECS
from kars_router.config.sandbox import Agent, Byo, EnvVar, Governance, Router
from kars_router.config.shapes import (
    fields_by_key,
    is_map,
    is_section,
    is_tuple,
    takes_further_keys,
)
from kars_router.config.statuses import (
    Condition,
    KarsSandboxStatus,
    McpServerStatus,
    ToolPolicyStatus,
)
from kars_router.config.toolpolicy import Approval, Rule
from kars_router.config.toolpolicyspec import BundleRef
from kars_router.config.validations import VALIDATIONS
from kars_router.config.values import LARGEST_COUNT, LONGEST_SENTENCE

Schema = dict[str, Any]

_ANYTHING: Final[Schema] = {"x-kubernetes-preserve-unknown-fields": True}
_ANY_OBJECT: Final[Schema] = {"type": "object", **_ANYTHING}
_NUMBER_OR_TEXT: Final[Schema] = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
# Bounds that keep the rules cheap enough for an API server.
_MOST_ITEMS: Final = 256
_MOST_STRINGS: Final = 1024
_MOST_KEYS: Final = 64


def _text(pattern: str = "", *, least: int = 0, most: int = 0) -> Schema:
    made: Schema = {"type": "string"}
    if least:
        made["minLength"] = least
    if most:
        made["maxLength"] = most
    if pattern:
        made["pattern"] = f"^{pattern}$"
    return made


def _number_or_text(pattern: str, *more: Schema, least: int, most: int) -> Schema:
    return {
        "x-kubernetes-int-or-string": True,
        "allOf": [_NUMBER_OR_TEXT, *more],
        "pattern": f"^({pattern})$",
        "minimum": least,
        "maximum": most,
    }


def _integer(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


_MARKS: Final[Mapping[Any, Schema]] = {
    marks.Duration: _number_or_text(
        # One digit that is not 0: the parts are numbers, and all of them together are no time.
        patterns.DURATION,
        {"pattern": "[1-9]"},
        least=1,
        most=units.LONGEST - 1,
    ),
    marks.Size: _number_or_text(patterns.SIZE, least=units.SMALLEST_SIZE, most=units.LARGEST_SIZE),
    marks.Quantity: _number_or_text(patterns.QUANTITY, least=0, most=10**15 - 1),
    marks.Count: _integer(1, LARGEST_COUNT),
    marks.Priority: _integer(-LARGEST_COUNT, LARGEST_COUNT),
    marks.Generation: {"type": "integer", "format": "int64"},
    marks.Timestamp: {"type": "string", "format": "date-time"},
    marks.Name: _text(patterns.NAME, most=128),
    marks.ServerKey: _text(patterns.LABEL, most=63),
    marks.Label: _text(patterns.LABEL, most=63),
    marks.LabelOrAny: _text(rf"([*]|{patterns.LABEL})", most=63),
    marks.ObjectName: _text(patterns.OBJECT_NAME, most=253),
    marks.Image: _text(patterns.IMAGE, most=1024),
    marks.Variable: _text(patterns.VARIABLE, most=255),
    marks.EnvName: _text(patterns.ENV_NAME, most=255),
    marks.Glob: _text(patterns.GLOB, least=1, most=256),
    marks.GlobOrAny: _text(f"({patterns.GLOB})?", most=256),
    marks.Url: _text(patterns.url("[hH][tT][tT][pP][sS]?|[wW][sS][sS]?"), most=8192),
    marks.HttpUrl: _text(patterns.url("[hH][tT][tT][pP][sS]?"), most=8192),
    marks.Uri: _text(patterns.URI, most=8192),
    marks.HeaderValue: _text(patterns.HEADER_VALUE, most=8192),
    marks.Network: _text(patterns.NETWORK, most=49),
    marks.Scope: _text(patterns.SCOPE, most=256),
    marks.Pointer: _text(patterns.POINTER),
    marks.Regex: _text(least=1),
    marks.Sentence: {**_text(least=1, most=LONGEST_SENTENCE), "pattern": r"\S"},
    marks.Json: _ANYTHING,
    str: _text(),
    bool: {"type": "boolean"},
}
# Lists of sections that several managers may add to, each entry known by its name.
_MAPS: Final[Mapping[tuple[type, str], str]] = {
    (Agent, "env"): "name",
    (Byo, "env"): "name",
    (Router, "env"): "name",
    (Governance, "mcpServerRefs"): "name",
    (KarsSandboxStatus, "servers"): "name",
    (KarsSandboxStatus, "conditions"): "type",
    (McpServerStatus, "conditions"): "type",
    (ToolPolicyStatus, "conditions"): "type",
}
# What a type alone does not say.
_MORE: Final[Mapping[tuple[type, str], Schema]] = {
    (Approval, "via"): {"minItems": 1},
    **{(BundleRef, key): {"minLength": 1} for key in fields_by_key(BundleRef)},
    (Condition, "type"): {"minLength": 1},
    (Condition, "reason"): {"minLength": 1},
    (EnvVar, "valueFrom"): {"type": "object"},
    (Governance, "mcpServerRefs"): {"maxItems": MOST_SERVERS},
    (Rule, "arguments"): {"type": "object"},
}
_STATUSES: Final[Mapping[str, type[Any]]] = {
    "McpServer": McpServerStatus,
    "KarsSandbox": KarsSandboxStatus,
    "ToolPolicy": ToolPolicyStatus,
}


def resource_schema(kind: str) -> Schema:
    """The schema of a whole custom resource.

    Args:
        kind: `McpServer`, `KarsSandbox` or `ToolPolicy`.
    """
    spec = SPECS[kind]
    made: Schema = {
        "type": "object",
        "description": describe(spec),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": {**section_schema(spec), "description": "What is wanted."},
            "status": {
                **section_schema(_STATUSES[kind]),
                "description": "What became of it; the operator's to write.",
            },
        },
    }
    longest = LONGEST_NAMES.get(kind)
    if longest:
        rule = (
            f"size(self.metadata.name) <= {longest} && "
            f"self.metadata.name.matches('^{patterns.LABEL}$')"
        )
        message = (
            f"a {kind} has a name of 1 to {longest} lower-case letters, digits and inner dashes"
        )
        made["x-kubernetes-validations"] = [{"rule": rule, "message": message}]
    if kind == "McpServer":
        made["required"] = ["spec"]
    return made


def section_schema(cls: type[Any]) -> Schema:
    """The schema of one section.

    Args:
        cls: its class.
    """
    said = describe_fields(cls)
    made: Schema = {"type": "object", "description": describe(cls), "properties": {}}
    required = [key for key, each in fields_by_key(cls).items() if each.metadata == NEEDED]
    for key, each in fields_by_key(cls).items():
        made["properties"][key] = _field_schema(cls, key, each, said.get(each.name, ""))
    if required:
        made["required"] = required
    if takes_further_keys(cls):
        made |= _ANYTHING
    rules = VALIDATIONS.get(cls, ())
    if rules:
        made["x-kubernetes-validations"] = [
            {"rule": each.rule, "message": each.message} for each in rules
        ]
    return made


def _field_schema(cls: type[Any], key: str, each: Attribute[Any], said: str) -> Schema:
    made = dict(_schema(each.type))
    made |= _MORE.get((cls, key), {})
    if made.get("type") == "array":
        made |= _list_schema(cls, key, made)
    if said:
        made["description"] = said + _default(cls, key)
    # An API server compares null with the words of an enum, whatever else it is told.
    if each.metadata != NEEDED and "enum" not in made:
        made["nullable"] = True
    return made


def _list_schema(cls: type[Any], key: str, made: Schema) -> Schema:
    by = _MAPS.get((cls, key))
    if by:
        more: Schema = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [by]}
    else:
        # Never a set: what several managers list there becomes one list, so that more could be
        # allowed than anybody has applied.
        more = {"x-kubernetes-list-type": "atomic"}
    if "maxItems" not in made:
        scalar = made["items"].get("type") == "string"
        more["maxItems"] = _MOST_STRINGS if scalar else _MOST_ITEMS
    return more


def _default(cls: type[Any], key: str) -> str:
    """What holds where the key is not given, as the end of a description."""
    default = to_plain(cls()).get(key)
    if isinstance(default, bool):
        return f" {str(default).lower()} by default."
    if default in (None, "") or isinstance(default, list | Mapping):
        return ""
    return f" {default} by default."


def _schema(kind: Any) -> Schema:
    if kind in _MARKS:
        return _MARKS[kind]
    arguments = [each for each in get_args(kind) if each is not type(None)]
    if is_section(kind):
        return section_schema(kind)
    if is_map(kind):
        values = _schema(arguments[1])
        return {"type": "object", "additionalProperties": values, "maxProperties": _MOST_KEYS}
    if is_tuple(kind):
        return {"type": "array", "items": _schema(arguments[0])}
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return {"type": "string", "enum": [member.value for member in kind]}
    if kind is Path or len(arguments) != 1:
        raise TypeError(f"no custom resource can hold {kind}")
    return _schema(arguments[0])
