"""How single plain values become settings and how they go back.

Owns one hook for each mark of the schema, called as `hook(raw, type)`; each returns the value or
raises `InvalidError` with a sentence. Hooks of values that may be secrets never repeat them.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from kars_router.config import addresses, globs, headers, marks, patterns, units
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.problems import InvalidError, Problem, invalid, kind_of, show, suggest

T = TypeVar("T")
Hook = Callable[[object, Any], Any]

HIDDEN = "(hidden)"
LARGEST_COUNT = 1_000_000
DEEPEST_OPTION = 32
LONGEST_SENTENCE = 4096
_POINTER = re.compile(rf"{patterns.POINTER}\Z")
_SCOPE = re.compile(rf"{patterns.SCOPE}\Z")  # RFC 6749 section 3.3
_URI = re.compile(rf"(?=.{{1,8192}}\Z){patterns.URI}\Z")  # RFC 8707 section 2
ENV_NAME = re.compile(rf"{patterns.ENV_NAME}\Z")
_NAME = re.compile(rf"{patterns.NAME}\Z")
# RFC 1123, as Kubernetes has it.
LABEL = re.compile(rf"{patterns.LABEL}\Z")
OBJECT_NAME = re.compile(rf"(?=.{{1,253}}\Z){patterns.OBJECT_NAME}\Z")
_LABEL_OR_ANY = re.compile(rf"(?:[*]|{patterns.LABEL})\Z")
_IMAGE = re.compile(rf"(?=.{{1,1024}}\Z){patterns.IMAGE}\Z")
_VARIABLE = re.compile(rf"{patterns.VARIABLE}\Z")
_QUANTITY = re.compile(rf"(?:{patterns.QUANTITY})\Z")


def string_pairs(raw: object, problems: list[Problem]) -> Iterable[tuple[str, object]]:
    """The items of a mapping; keys that are no strings go to `problems` instead.

    Raises:
        InvalidError: if it is no mapping.
    """
    if not isinstance(raw, Mapping):
        raise invalid(f"must be a mapping, not {show(raw)}")
    for key, value in raw.items():
        if isinstance(key, str):
            yield key, value
        else:
            complaint = f"has the key {show(key)}, which must be a string: quote it"
            problems.append(Problem((), complaint))


def _string(raw: object, _: Any = None) -> str:
    if not isinstance(raw, str):
        raise invalid(f"must be a string, not {show(raw)}")
    return raw


def _hidden_string(raw: object, _: Any = None) -> str:
    if not isinstance(raw, str):
        raise invalid(f"must be a string, not {kind_of(raw)}")
    return raw


def _boolean(raw: object, _: Any) -> bool:
    if not isinstance(raw, bool):
        raise invalid(f"must be true or false, not {show(raw)}")
    return raw


def _count(raw: object, _: Any) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise invalid(f"must be a whole number, not {show(raw)}")
    if not 1 <= raw <= LARGEST_COUNT:
        raise invalid(f"must be from 1 to {LARGEST_COUNT}, not {show(raw)}")
    return raw


def _priority(raw: object, _: Any) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or abs(raw) > LARGEST_COUNT:
        raise invalid(
            f"must be a whole number from -{LARGEST_COUNT} to {LARGEST_COUNT}, not {show(raw)}"
        )
    return raw


def _quantity_of_a_resource(raw: object, _: Any) -> str:
    whole = isinstance(raw, int) and not isinstance(raw, bool)
    text = str(raw) if whole else _string(raw)
    if not _QUANTITY.match(text):
        raise invalid(f"must be a quantity such as 500m, 2 or 1Gi, not {show(raw)}")
    return text


def _sentence(raw: object, _: Any) -> str:
    text = _string(raw).strip()
    if not text or len(text) > LONGEST_SENTENCE:
        raise invalid(f"must have 1 to {LONGEST_SENTENCE} characters")
    return text


def _regex(raw: object, _: Any) -> str:
    text = _string(raw)
    try:
        with warnings.catch_warnings():
            # What will mean something else in a later Python must not silently change.
            warnings.simplefilter("error")
            compiled = re.compile(text)
    except (re.error, Warning) as error:
        # The sentence may repeat characters of the expression.
        said = "".join(each if each.isprintable() else "?" for each in str(error))
        raise invalid(f"is no regular expression: {said}") from None
    except (RecursionError, OverflowError):
        raise invalid("is no regular expression that can be compiled") from None
    if compiled.match(""):
        raise invalid("matches the empty string, so that it would match everywhere")
    return text


def _network(raw: object, _: Any) -> str:
    text = _string(raw)
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        with suppress(ValueError):
            meant = ipaddress.ip_network(text, strict=False)
            raise invalid(f"has bits beyond its prefix; write {meant}") from None
        raise invalid(f"must be a network such as 10.0.0.0/8, not {show(raw)}") from None


def _http_url(raw: object, _: Any) -> str:
    text = _hidden_string(raw)
    if not re.match(r"https?://", text, re.IGNORECASE):
        raise invalid("must start with http:// or https://")
    try:
        return addresses.parse_url(text)
    except ValueError as error:
        raise invalid(str(error)) from None


def _path(raw: object, _: Any) -> Path:
    text = _string(raw)
    if not text or not text.isprintable():
        raise invalid("must be a path, which is neither empty nor holds control characters")
    return Path(text)


def _choice(raw: object, kind: type[enum.StrEnum]) -> enum.StrEnum:
    known = [member.value for member in kind]
    if not isinstance(raw, str) or raw not in known:
        near = suggest(raw, known) if isinstance(raw, str) else ""
        raise invalid(f"must be one of {', '.join(known)}, not {show(raw)}{near}")
    return kind(raw)


def _command(raw: object, _: Any) -> tuple[str, ...]:
    # A string is the program alone, as in the files of MCP clients; it is never split.
    words = [raw] if isinstance(raw, str) else raw
    if not isinstance(words, list | tuple):
        raise invalid(f"must be a program or a list of words, not {show(raw)}")
    wrong = [index for index, word in enumerate(words) if not isinstance(word, str)]
    if wrong:
        raise InvalidError(
            Problem((index,), f"must be a string, not {kind_of(words[index])}") for index in wrong
        )
    if words and not words[0]:
        raise invalid("must name a program")
    return tuple(words)


def _env_name(raw: object, _: Any) -> str:
    # A wrong value here is often the token itself, so it is not repeated.
    text = _hidden_string(raw)
    if not ENV_NAME.match(text):
        raise invalid("must be the name of an environment variable, never the token itself")
    return text


def _json(raw: object, _: Any, depth: int = 0) -> object:
    if depth > DEEPEST_OPTION:
        raise invalid(f"is nested more than {DEEPEST_OPTION} deep")
    if isinstance(raw, float) and not math.isfinite(raw):
        raise invalid("must be a finite number")
    if raw is None or isinstance(raw, bool | int | float | str):
        return raw
    problems: list[Problem] = []
    pairs: Iterable[tuple[Any, object]]
    if isinstance(raw, Mapping):
        pairs = string_pairs(raw, problems)
    elif isinstance(raw, list | tuple):
        pairs = enumerate(raw)
    else:
        raise invalid(f"must be plain data, not {show(raw)}")
    items: dict[Any, object] = {}
    for key, value in pairs:
        try:
            items[key] = _json(value, None, depth + 1)
        except InvalidError as error:
            problems.extend(problem.under(key) for problem in error.problems)
    if problems:
        raise InvalidError(problems)
    return FrozenMap(items) if isinstance(raw, Mapping) else tuple(items.values())


def _thaw(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _thaw(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_thaw(each) for each in value]
    return value


def _glob_or_any(raw: object, _: Any) -> str:
    text = _string(raw) or "*"
    complaint = globs.check_glob(text)
    if complaint is not None:
        raise invalid(complaint)
    return text


def _parsed(parse: Callable[[str], T], read: Callable[[object], str] = _string) -> Hook:
    """A hook from a parser of strings that raises ValueError with a sentence."""

    def hook(raw: object, _: Any) -> T:
        text = read(raw)
        try:
            return parse(text)
        except ValueError as error:
            raise invalid(str(error)) from None

    return hook


def _quantity(parse: Callable[[object], T]) -> Hook:
    """A hook from a parser of numbers and strings; its sentence is completed with the value."""

    def hook(raw: object, _: Any) -> T:
        try:
            return parse(raw)
        except ValueError as error:
            raise invalid(f"{error}, not {show(raw)}") from None

    return hook


def _checked(check: Callable[[str], str | None], read: Callable[[object], str] = _string) -> Hook:
    """A hook from a check that returns a sentence, or None."""

    def hook(raw: object, _: Any) -> str:
        text = read(raw)
        complaint = check(text)
        if complaint is not None:
            raise invalid(complaint)
        return text

    return hook


def _matching(
    pattern: re.Pattern[str], complaint: str, read: Callable[[object], str] = _string
) -> Hook:
    return _checked(lambda text: None if pattern.match(text) else complaint, read)


# Classes first, then the marks of the schema.
HOOKS: tuple[tuple[Any, Hook], ...] = (
    (str, _string),
    (bool, _boolean),
    (Path, _path),
    (enum.StrEnum, _choice),
    (addresses.Address, _parsed(addresses.parse_listen)),
)
MARK_HOOKS: tuple[tuple[Any, Hook], ...] = (
    (marks.Duration, _quantity(units.parse_duration)),
    (marks.Size, _quantity(units.parse_size)),
    (marks.Count, _count),
    (marks.Name, _matching(_NAME, "must be a name: letters, digits, dots, dashes, underscores")),
    (
        marks.ServerKey,
        _matching(
            LABEL,
            "is not a server name: it takes 1 to 63 lower-case letters, digits or inner dashes",
        ),
    ),
    (marks.Glob, _checked(globs.check_glob)),
    (marks.GlobOrAny, _glob_or_any),
    (marks.Url, _parsed(addresses.parse_url, _hidden_string)),
    (marks.HttpUrl, _http_url),
    (marks.Uri, _matching(_URI, "must be an absolute URI without a fragment", _hidden_string)),
    (marks.EnvName, _env_name),
    (marks.HeaderName, _checked(headers.check_header_name)),
    (marks.HeaderValue, _checked(headers.check_header_value, _hidden_string)),
    (marks.Secret, _hidden_string),
    (marks.Host, _parsed(addresses.parse_host)),
    (marks.Origin, _parsed(addresses.parse_origin)),
    (marks.Command, _command),
    (marks.Json, _json),
    (marks.Priority, _priority),
    (marks.Sentence, _sentence),
    (marks.Regex, _regex),
    (marks.Network, _network),
    (
        marks.Pointer,
        _matching(_POINTER, "must be a JSON pointer: each step is / and a name, ~ is ~0, / is ~1"),
    ),
    (marks.Scope, _matching(_SCOPE, "must be a scope: printable ASCII without spaces and quotes")),
    (marks.ObjectName, _matching(OBJECT_NAME, "must be the name of an object in the cluster")),
    (marks.Label, _matching(LABEL, "must be a name of 1 to 63 lower-case letters, digits, dashes")),
    (
        marks.LabelOrAny,
        _matching(
            _LABEL_OR_ANY,
            "must be * or a name of 1 to 63 lower-case letters, digits, dashes",
        ),
    ),
    (marks.Image, _matching(_IMAGE, "must be an image's name, without white space")),
    (marks.Variable, _matching(_VARIABLE, "must be the name of an environment variable")),
    (marks.Quantity, _quantity_of_a_resource),
)

# Back to plain data; what is not named here is plain already.
PLAIN: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    (addresses.Address, str),
    (Path, str),
    (enum.StrEnum, lambda member: member.value),
)
MARK_PLAIN: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    (marks.Duration, units.format_duration),
    (marks.Size, units.format_size),
    (marks.Url, addresses.hide_query),
    (marks.HttpUrl, addresses.hide_query),
    (marks.Uri, addresses.hide_query),
    (marks.HeaderValue, lambda _: HIDDEN),
    (marks.Secret, lambda _: HIDDEN),
    (marks.Json, _thaw),
)
# Whose plain form is for eyes that should see no secret.
HIDDEN_MARKS: tuple[Any, ...] = (
    marks.Url,
    marks.HttpUrl,
    marks.Uri,
    marks.HeaderValue,
    marks.Secret,
)
