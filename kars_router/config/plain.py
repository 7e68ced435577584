"""Configuration values to plain data: for people, without secrets, and for files, with them.

The counterpart of `converter`, which does it the other way round; both use cattrs for nothing but
the dispatch by type.
"""

from __future__ import annotations

from functools import partial
from operator import eq
from typing import Any, get_args

from cattrs import Converter

from kars_router.config.marks import NEEDED
from kars_router.config.shapes import fields_by_key, is_map, is_section, is_tuple
from kars_router.config.values import HIDDEN_MARKS, MARK_PLAIN, PLAIN


def to_plain(config: object) -> dict[str, object]:
    """A configuration, or a section of one, as plain data for people: every key, with defaults.

    Values of `headers` and `env` and queries of URLs are hidden, since they may be secrets; all
    else, when structured again, gives an equal configuration.
    """
    plain: dict[str, object] = _FOR_PEOPLE.unstructure(config)
    return plain


def to_file(section: object) -> dict[str, Any]:
    """A section as plain data for a file: what differs from its defaults or has to be given.

    Secrets are included. Structured again as the same class, it gives an equal section.
    """
    plain: dict[str, Any] = _FOR_FILES.unstructure(section)
    return plain


def _every_key(converter: Converter, cls: type[Any]) -> Any:
    fields = fields_by_key(cls)
    return lambda value: {
        key: converter.unstructure(getattr(value, each.name), unstructure_as=each.type)
        for key, each in fields.items()
    }


def _given_keys(converter: Converter, cls: type[Any]) -> Any:
    fields = fields_by_key(cls)
    return lambda value: {
        key: converter.unstructure(getattr(value, each.name), unstructure_as=each.type)
        for key, each in fields.items()
        if each.metadata == NEEDED or getattr(value, each.name) != each.default
    }


def _map_plain(converter: Converter, type_: Any) -> Any:
    value_type = get_args(type_)[1]
    return lambda value: {
        key: converter.unstructure(each, unstructure_as=value_type) for key, each in value.items()
    }


def _tuple_plain(converter: Converter, type_: Any) -> Any:
    item_type = get_args(type_)[0]
    return lambda value: [converter.unstructure(each, unstructure_as=item_type) for each in value]


def _make_converter(*, secrets: bool) -> Converter:
    made = Converter()
    for shape, plain_for in (
        (is_section, _given_keys if secrets else _every_key),
        (is_map, _map_plain),
        (is_tuple, _tuple_plain),
    ):
        made.register_unstructure_hook_factory(shape, partial(plain_for, made))
    for kind, plain in PLAIN:
        made.register_unstructure_hook(kind, plain)
    for mark, plain in MARK_PLAIN:
        if not secrets or mark not in HIDDEN_MARKS:
            made.register_unstructure_hook_func(partial(eq, mark), plain)
    return made


_FOR_PEOPLE = _make_converter(secrets=False)
_FOR_FILES = _make_converter(secrets=True)
