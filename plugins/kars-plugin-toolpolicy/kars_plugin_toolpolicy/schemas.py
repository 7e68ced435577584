"""JSON Schemas for arguments: the one module that knows the validator.

Owns what is said of arguments that do not fit: places and keywords, never values. Nothing is ever
fetched; references stay within the schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import jsonschema_rs
from attrs import frozen

_SHOWN: Final = 3  # places that do not fit
_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


class SchemaError(Exception):
    """A schema that cannot be compiled.

    Args:
        path: where in the schema.
        message: the rest of a sentence that starts with the path.
    """

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        self.path = tuple(path)
        super().__init__(message)


class SchemaFailed(Exception):
    """Arguments that cannot be validated at all."""


@frozen
class Schema:
    """A compiled JSON Schema of draft 2020-12."""

    _validator: Any

    @classmethod
    def compile(cls, schema: object) -> Schema:
        """Compiles a schema; a pattern is matched in linear time, a `format` is asserted.

        Args:
            schema: plain data; mappings may be frozen, lists may be tuples.

        Raises:
            SchemaError: it is no schema, is for another draft, or refers to what is outside of it.
        """
        plain = _thaw(schema)
        if not isinstance(plain, dict):
            raise SchemaError((), "must be a JSON Schema, which is a mapping")
        if str(plain.get("$schema", _DRAFT)).rstrip("#") != _DRAFT:
            raise SchemaError(("$schema",), f"must be {_DRAFT}, or left out")
        try:
            made = jsonschema_rs.Draft202012Validator(
                plain,
                offline=True,
                validate_formats=True,
                ignore_unknown_formats=False,
                pattern_options=jsonschema_rs.RegexOptions(),
            )
        except jsonschema_rs.ValidationError as error:
            raise SchemaError(error.instance_path, _first_line(error.message)) from None
        except (jsonschema_rs.ReferencingError, ValueError) as error:
            raise SchemaError((), _first_line(str(error))) from None
        return cls(made)

    def misfits(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Says where arguments do not fit.

        Args:
            arguments: within the bounds of `kars_plugin_toolpolicy.bounds`.

        Returns:
            at most three clauses such as `/path (pattern)`, none if they fit. A member that the
            schema does not name is shown as `*`: its name is the agent's.

        Raises:
            SchemaFailed: they cannot be validated, for a string that is no Unicode for example.
        """
        try:
            if self._validator.is_valid(arguments):
                return ()
            found = [_place(each) for each in islice(self._validator.iter_errors(arguments), 64)]
        except (ValueError, RuntimeError, OverflowError, RecursionError) as error:
            raise SchemaFailed(type(error).__name__) from None
        return tuple(dict.fromkeys(found))[:_SHOWN]


def _place(error: jsonschema_rs.ValidationError) -> str:
    named = set(map(str, error.schema_path))
    pointer = "".join(
        f"/{key}" if isinstance(key, int) else f"/{_escape(key)}" if key in named else "/*"
        for key in error.instance_path
    )
    keyword = error.kind.name
    if keyword == "falseSchema" and error.schema_path:
        keyword = str(error.schema_path[-1])  # such as additionalProperties
    return f"{pointer or 'the whole'} ({keyword})"


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")  # RFC 6901


def _first_line(text: str) -> str:
    line = text.partition("\n")[0].strip()
    return f"is no JSON Schema: {line}"


def _thaw(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _thaw(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_thaw(each) for each in value]
    return value
