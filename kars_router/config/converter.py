"""Plain data to configuration values.

Owns one converter. It replaces cattrs' generated hooks for classes, so that problems come in the
order of the file, every mistake is found in one pass and the rules that span keys run even when
one of the keys is wrong; cattrs does the dispatch by type. The way back is `plain`. Knows no files,
no environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import eq
from typing import Any, Final, TypeVar, cast, get_args

from cattrs import Converter

from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import HeaderName
from kars_router.config.plain import to_plain
from kars_router.config.problems import (
    InvalidConfigError,
    InvalidError,
    Key,
    Problem,
    in_file_order,
    invalid,
    show,
    suggest,
)
from kars_router.config.rules import RULES, Broken, Given, Read
from kars_router.config.schema import Config, Server
from kars_router.config.shapes import (
    fields_by_key,
    is_map,
    is_section,
    is_tuple,
    takes_further_keys,
)
from kars_router.config.values import HOOKS, MARK_HOOKS, Hook, string_pairs

__all__ = ["structure_config", "structure_section", "structure_server", "to_plain"]

T = TypeVar("T")

# Where the sections of `kars.yaml` are; every other section is one of a custom resource.
_OF_THE_FILE: Final = frozenset(
    f"kars_router.config.{name}" for name in ("schema", "auth", "toolpolicy")
)


def structure_config(raw: object) -> Config:
    """Structures a whole document.

    Args:
        raw: plain data, as YAML or JSON give it.

    Raises:
        InvalidError: with every problem, in the order of the data.
    """
    return _structure(raw, Config)


def structure_server(raw: object, path: Sequence[Key] = (), source: str = "") -> Server:
    """Structures one server entry or one `McpServer.spec`.

    Args:
        raw: plain data.
        path: where the entry stands, to be put before the path of every problem.
        source: the file or resource that is named with the problems.

    Raises:
        InvalidConfigError: with every problem.
    """
    try:
        return _structure(raw, Server)
    except InvalidError as error:
        found = (problem.under(*path) for problem in error.problems)
        raise InvalidConfigError(found, source) from None


def structure_section(raw: object, cls: type[T]) -> T:
    """Structures a section of any class that `schema` or `resources` knows.

    Args:
        raw: plain data.
        cls: the section's class.

    Raises:
        InvalidError: with every problem, in the order of the data.
    """
    return _structure(raw, cls)


def _structure(raw: object, cls: type[T]) -> T:
    try:
        return _CONVERTER.structure(raw, cls)
    except InvalidError as error:
        raise InvalidError(in_file_order(error.problems, raw)) from None


def _class_hook(cls: type[Any]) -> Hook:
    fields = fields_by_key(cls)
    rules = _rules_of(cls)
    open_ended = takes_further_keys(cls)

    def structure(raw: object, _: Any) -> Any:
        read: dict[str, Any] = {}
        given: set[str] = set()
        problems: list[Problem] = []
        for key, value in string_pairs(raw, problems):
            each = fields.get(key)
            if each is None and open_ended:
                continue
            if each is None:
                problems.append(Problem((key,), f"is not a known key{suggest(key, fields)}"))
                continue
            # As in Kubernetes, null is "not given", unless it means something of its own.
            if value is None and type(None) not in get_args(each.type):
                continue
            try:
                read[each.name] = _CONVERTER.structure(value, cast(Any, each.type))
            except InvalidError as error:
                problems.extend(problem.under(key) for problem in error.problems)
            if each.name not in read or read[each.name] != each.default:
                given.add(each.name)
        if rules is not None:
            problems.extend(Problem((key,), message) for key, message in rules(read, given))
        if problems:
            raise InvalidError(problems)
        return cls(**read)

    return structure


def _rules_of(cls: type[Any]) -> Callable[[Read, Given], Broken] | None:
    if cls in RULES or cls.__module__ in _OF_THE_FILE:
        return RULES.get(cls)
    # Late: a router reads no custom resources.
    from kars_router.config.resource_rules import RESOURCE_RULES

    return RESOURCE_RULES.get(cls)


def _map_hook(type_: Any) -> Hook:
    key_type, value_type = get_args(type_)

    def structure(raw: object, _: Any) -> FrozenMap[str, Any]:
        problems: list[Problem] = []
        items: dict[str, Any] = {}
        for key, value in string_pairs(raw, problems):
            for each, typed in ((key, key_type), (value, value_type)):
                try:
                    items[key] = _CONVERTER.structure(each, typed)
                except InvalidError as error:
                    problems.extend(problem.under(key) for problem in error.problems)
        if key_type is HeaderName:
            problems.extend(_same_but_for_case(items))
        if problems:
            raise InvalidError(problems)
        return FrozenMap(items)

    return structure


def _same_but_for_case(names: Iterable[str]) -> Iterable[Problem]:
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.lower(), name)
        if first != name:
            yield Problem((name,), f"is given twice, as {first!r} too: case does not matter here")


def _tuple_hook(type_: Any) -> Hook:
    item_type = get_args(type_)[0]

    def structure(raw: object, _: Any) -> tuple[Any, ...]:
        if not isinstance(raw, list | tuple):
            raise invalid(f"must be a list, not {show(raw)}")
        problems: list[Problem] = []
        items = []
        for index, value in enumerate(raw):
            try:
                items.append(_CONVERTER.structure(value, item_type))
            except InvalidError as error:
                problems.extend(problem.under(index) for problem in error.problems)
        if problems:
            raise InvalidError(problems)
        return tuple(items)

    return structure


def _make_converter() -> Converter:
    # Without "detailed validation" an exception of ours comes through as it is.
    made = Converter(detailed_validation=False)
    for shape, hook_for in (
        (is_section, _class_hook),
        (is_map, _map_hook),
        (is_tuple, _tuple_hook),
    ):
        made.register_structure_hook_factory(shape, hook_for)
    for kind, hook in HOOKS:
        made.register_structure_hook(kind, hook)
    for mark, hook in MARK_HOOKS:
        made.register_structure_hook_func(partial(eq, mark), hook)
    return made


_CONVERTER = _make_converter()
