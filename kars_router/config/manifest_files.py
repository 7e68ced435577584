"""Reading manifests from files and directories, as `kubectl apply -f` finds them.

Owns which files are read, what a document in them is, and that no name stands there twice. Must
not know what any kind means.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kars_router.errors import UserError

Manifest = Mapping[str, Any]
Key = tuple[str, str, str]  # kind, namespace and name

_DASH: Final = Path("-")
_STDIN: Final = Path("stdin")  # what it is called where something is wrong
_ENDINGS: Final = frozenset({".yaml", ".yml", ".json"})


@define(eq=False)
class Places:
    """Where the resources of some files are.

    Args:
        namespace: of those that name none.
    """

    namespace: str
    _taken: set[Key] = field(factory=set, init=False)

    def take(self, manifest: Manifest, source: Path) -> tuple[Key, Manifest]:
        """Gives a resource its place.

        Returns:
            The place, and the manifest with the namespace in it.

        Raises:
            UserError: it has no kind or no name, or another one has that place already.
        """
        kind, metadata = manifest.get("kind"), manifest.get("metadata")
        if not isinstance(kind, str) or not kind:
            raise UserError(f"{source}: holds a document without a kind")
        if not isinstance(metadata, Mapping) or not metadata.get("name"):
            raise UserError(f"{source}: a {kind} has no metadata.name")
        namespace = str(metadata.get("namespace") or self.namespace)
        key = kind, namespace, str(metadata["name"])
        if key in self._taken:
            raise UserError(f"{source}: {kind} {namespace}/{key[2]} is there twice; keep one")
        self._taken.add(key)
        return key, {**manifest, "metadata": {**metadata, "namespace": namespace}}


def read_documents(paths: Iterable[Path]) -> Iterator[tuple[Path, Manifest]]:
    """Reads files, and the files of directories and of those in them.

    Args:
        paths: files or directories; `-` is stdin.

    Returns:
        What is in them, each with its file; what is in a `List` one by one.

    Raises:
        UserError: one cannot be read; names it.
    """
    for path in paths:
        if path == _DASH:
            yield from _resources(_STDIN, sys.stdin.buffer.read)
            continue
        for file in _files(path):
            yield from _resources(file, file.read_bytes)


def _resources(file: Path, read: Callable[[], bytes]) -> Iterator[tuple[Path, Manifest]]:
    for document in _documents(file, read):
        yield from ((file, each) for each in _mappings(document, file))


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise UserError(f"{path}: there is no such file or directory")
    if not path.is_dir():
        yield path
        return
    for each in sorted(path.rglob("*")):
        if each.suffix in _ENDINGS and each.is_file():
            yield each


def _documents(file: Path, read: Callable[[], bytes]) -> list[object]:
    try:
        return list(YAML(typ="safe", pure=True).load_all(read().decode()))
    except UnicodeDecodeError:
        raise UserError(f"{file}: is no UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: is no YAML: {_where_and_what(error)}") from error


def _where_and_what(error: Exception) -> str:
    """One line of it: the parser's own text has the place twice and an excerpt."""
    if not isinstance(error, MarkedYAMLError) or not error.problem:
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{' '.join(error.problem.split())}"


def _mappings(document: object, file: Path) -> Iterator[Manifest]:
    if document is None:
        return
    if not isinstance(document, Mapping):
        raise UserError(f"{file}: holds a document that is no mapping of keys")
    if document.get("kind") != "List":
        yield document
        return
    items = document.get("items") or []
    if not isinstance(items, list):
        raise UserError(f"{file}: holds a List whose items are no list")
    for each in items:
        yield from _mappings(each, file)
