"""YAML 1.2 to plain data, read without trusting it.

Owns the limit on alias expansion and the lines of doubled keys. Uses ruamel.yaml up to its node
graph only, and builds the data itself: no tag can make an object, and an alias that is expanded a
billion times stops at a count (`LARGEST`). Knows no schema. Imported when there is YAML to read and
not before, since the parser takes more memory than everything that is read with it.
"""

from __future__ import annotations

from typing import Any, cast

from attrs import define, field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLStreamError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from kars_router.config.document import DEEPEST, LARGEST
from kars_router.config.problems import Path, Problem, invalid

_CORE = "tag:yaml.org,2002:"
_NUMBER_PREFIXES = {"0x": 16, "0o": 8, "0b": 2}


def parse_yaml(text: str) -> tuple[object, list[Problem]]:
    """Reads one document; like `parse_document`, for what is no plain JSON.

    Args:
        text: YAML, without characters that `parse_document` refuses.

    Returns:
        Plain data, and what is wrong in it that the data cannot show.

    Raises:
        InvalidError: with one problem if the text cannot be read at all.
    """
    node = _compose(text)
    if node is None:
        return None, []
    builder = _Builder()
    try:
        return builder.build(node, ()), builder.problems
    except RecursionError:  # merges can nest without the keys getting any deeper
        raise invalid(f"is nested more than {DEEPEST} deep") from None


def _compose(text: str) -> Node | None:
    try:
        return cast("Node | None", YAML(typ="safe", pure=True).compose(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = error.problem or error.context or "is not YAML"
        if what == "but found another document":
            what = "a second document begins, and one is all that is read"
        raise invalid(f"{where}{' '.join(str(what).split())}") from None
    except RecursionError:
        raise invalid(f"is nested more than {DEEPEST} deep") from None
    except (YAMLError, YAMLStreamError, ValueError, OverflowError):
        # The parser lets a few errors of Python through, such as for an escape beyond Unicode.
        raise invalid("is not YAML") from None


@define
class _Builder:
    """Builds plain data from nodes, within the limits."""

    problems: list[Problem] = field(factory=list)
    _count: int = 0

    def build(self, node: Node, keys: Path) -> Any:
        self._count += 1
        if self._count > LARGEST:
            raise invalid(f"holds more than {LARGEST} values, counting every use of an alias")
        if len(keys) >= DEEPEST and not isinstance(node, ScalarNode):
            raise invalid(f"is nested more than {DEEPEST} deep, or an alias stands within itself")
        if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
            return self._mapping(node, keys)
        if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
            return [self.build(each, (*keys, index)) for index, each in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            kind = str(node.tag).removeprefix(_CORE)
            try:
                return _scalar(kind, node.value)
            except ValueError:
                self.problems.append(Problem(keys, f"cannot be read as {kind!r}: {_line(node)}"))
                return None
        self.problems.append(Problem(keys, f"has a tag that is not known here: {_line(node)}"))
        return None

    def _mapping(self, node: MappingNode, keys: Path) -> dict[Any, Any]:
        built: dict[Any, Any] = {}
        lines: dict[Any, str] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_CORE}merge":
                merged.append(value_node)
                continue
            key = self.build(key_node, keys)
            if isinstance(key, dict | list):
                complaint = f"has a key that is no string: {_line(key_node)}"
                self.problems.append(Problem(keys, complaint))
                continue
            value = self.build(value_node, (*keys, str(key)))
            if key in built:
                message = f"is given twice, on {lines[key]} and {_line(key_node)}; keep one"
                self.problems.append(Problem((*keys, str(key)), message))
            else:
                built[key], lines[key] = value, _line(key_node)
        for each in merged:
            self._merge(built, each, keys)
        return built

    def _merge(self, built: dict[Any, Any], node: Node, keys: Path) -> None:
        parts = self.build(node, keys)
        for part in parts if isinstance(parts, list) else [parts]:
            if not isinstance(part, dict):
                self.problems.append(Problem(keys, f"merges what is no mapping: {_line(node)}"))
                continue
            for key, value in part.items():
                built.setdefault(key, value)


def _line(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _scalar(kind: str, text: str) -> object:
    """Gives the value of a scalar whose kind the resolver has settled (YAML 1.2, chapter 10)."""
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on", "y")
    digits = text.replace("_", "").lower()
    if kind == "int":
        return _integer(digits)
    if kind == "float":
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    if kind in ("str", "timestamp", "value", "merge"):
        # JSON writes characters beyond the first plane as two escapes; YAML leaves them apart.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    raise ValueError(kind)


def _integer(digits: str) -> int:
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    base = _NUMBER_PREFIXES.get(digits[:2])
    return sign * (int(digits[2:], base) if base else int(digits))
