"""Manifests as Helm and the API server read them, and the marks that Helm puts on them.

Pure. Both read YAML 1.1 as Go's yaml.v2 does: `yes` is true, `0644` an octal number, a date a
text. With another reader, what is checked would not be what is applied.

Source: https://pkg.go.dev/go.yaml.in/yaml/v2, https://pkg.go.dev/sigs.k8s.io/yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

Manifest = dict[str, Any]

_CORE: Final = "tag:yaml.org,2002:"
_WORDS: Final[Mapping[str, object]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE"), True),
    **dict.fromkeys(("on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE"), False),
    **dict.fromkeys(("off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_INTEGER: Final = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)"
    r"|(?P<dec>0|[1-9][0-9]*))"
)
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BASES: Final = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
_LARGEST: Final = 1 << 64
_WHOLE: Final = 1e15  # beyond this a whole number is written with an exponent


class ManifestError(ValueError):
    """A text that is no manifest; the message says why, in a clause."""


def read(text: str) -> list[Manifest]:
    """The objects in a text, those in lists one by one.

    Raises:
        ManifestError: it cannot be read.
    """
    return [found for each in documents(text) for found in _objects(each)]


def documents(text: str) -> list[object]:
    """The documents in a text, as plain data; without empty ones.

    Raises:
        ManifestError: it cannot be read.
    """
    try:
        found = list(_documents(YAML(typ="safe", pure=True).parse(text)))
    except (YAMLError, ValueError, RecursionError) as error:
        raise ManifestError(f"is no YAML: {' '.join(str(error).split())[:200]}") from None
    return [each for each in found if each is not None]


def _objects(document: object) -> Iterator[Manifest]:
    if not isinstance(document, dict):
        raise ManifestError("holds something that is no object")
    items = document.get("items")
    if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
        for each in items:
            yield from _objects(each)
        return
    metadata = document.get("metadata")
    if not (isinstance(metadata, dict) and metadata.get("name") and document.get("kind")):
        raise ManifestError("holds an object without a kind or a name")
    yield document


def marked(manifest: Manifest, release: str, namespace: str) -> Manifest:
    """A manifest with the marks that Helm puts on what it applies.

    Args:
        manifest: of the chart; left alone.
        release: the name of the release.
        namespace: its namespace.
    """
    metadata = manifest["metadata"]
    labels = {**(metadata.get("labels") or {}), "app.kubernetes.io/managed-by": "Helm"}
    annotations = {
        **(metadata.get("annotations") or {}),
        "meta.helm.sh/release-name": release,
        "meta.helm.sh/release-namespace": namespace,
    }
    return {**manifest, "metadata": {**metadata, "labels": labels, "annotations": annotations}}


def _documents(events: Iterator[Event]) -> Iterator[object]:
    for event in events:
        if isinstance(event, DocumentStartEvent):
            yield _Builder(events, {}).value(next(events))


@frozen
class _Builder:
    """Builds plain data from the events of one document."""

    events: Iterator[Event]
    anchors: dict[str, object]

    def value(self, event: Event) -> object:
        match event:
            case AliasEvent():
                if event.anchor not in self.anchors:
                    raise ManifestError(f"is no YAML: nothing is called {event.anchor}")
                return self.anchors[event.anchor]
            case ScalarEvent():
                return self._keep(event, _scalar(event))
            case SequenceStartEvent():
                items: list[object] = self._keep(event, [])
                while not isinstance(following := next(self.events), SequenceEndEvent):
                    items.append(self.value(following))
                return items
            case MappingStartEvent():
                return self._mapping(event)
            case _:
                raise ManifestError("ends too early")

    def _mapping(self, event: MappingStartEvent) -> dict[str, object]:
        built: dict[str, object] = self._keep(event, {})
        merged: list[object] = []
        while not isinstance(key := next(self.events), MappingEndEvent):
            is_merge = isinstance(key, ScalarEvent) and key.value == "<<" and key.style is None
            name = self.value(key)
            value = self.value(next(self.events))
            if is_merge:
                merged += value if isinstance(value, list) else [value]
            else:
                built[_key(name)] = value
        for each in merged:
            if not isinstance(each, dict):
                raise ManifestError("merges something that is no mapping")
            for key_, value in each.items():
                built.setdefault(key_, value)
        return built

    def _keep(self, event: Any, value: Any) -> Any:
        if event.anchor:
            self.anchors[event.anchor] = value
        return value


def _key(name: object) -> str:
    match name:
        case str():
            return name
        case bool():
            return str(name).lower()
        case int() | float():
            return str(name)
        case _:
            raise ManifestError("has a key that is no text")


def _scalar(event: ScalarEvent) -> object:
    tag = str(event.tag or "")
    # `!` alone says the same as quotes.
    if event.style or tag in {"!", f"{_CORE}str"}:
        # JSON writes characters beyond the first plane as two escapes; YAML leaves them apart.
        return event.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _plain(event.value)


def _plain(text: str) -> object:
    if text in _WORDS:
        return _WORDS[text]
    digits = text.replace("_", "") if text[0] in "+-0123456789" else text
    found = _INTEGER.fullmatch(digits)
    if found:
        name = next(each for each in _BASES if found[each] is not None)
        number = int(found[name], _BASES[name]) * (-1 if found["sign"] == "-" else 1)
        if abs(number) < _LARGEST:
            return number
    if _FLOAT.fullmatch(digits):
        real = float(digits)
        return int(real) if real.is_integer() and abs(real) < _WHOLE else real
    return text
