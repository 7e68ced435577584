"""What is wrong with a configuration, where, and how that is said in one line.

Owns paths (`servers.web.allowedTools[1]`), the wording of wrong values and the suggestions for
misspelt names. Knows no schema: every function takes what it needs. No sentence ever repeats a
value that might be a secret; such values are described with `kind_of` instead of `show`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve, frozen

from kars_router.errors import ConfigError

Key = str | int
Path = tuple[Key, ...]

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\Z")
_SHOWN = 60  # characters of a key or a value that a sentence repeats


@frozen
class Problem:
    """One mistake.

    Attributes:
        keys: where it is, from the top of the document; empty for the whole document.
        message: a sentence that goes on from the path, without a full stop.
        flag: the command-line flag that the value came from; empty if it came from the file.
    """

    keys: Path
    message: str
    flag: str = ""

    @property
    def path(self) -> str:
        """The place as people write it; empty for the whole document."""
        return self.flag or render_path(self.keys)

    @property
    def line(self) -> str:
        """`path: sentence`."""
        return f"{self.path}: {self.message}" if self.path else self.message

    def under(self, *keys: Key) -> Problem:
        """The same problem, seen from further up."""
        return evolve(self, keys=(*keys, *self.keys))


class InvalidError(Exception):
    """Raised while a value is being structured; carries every problem found in it.

    Never leaves `kars_router.config`: callers see `InvalidConfigError`.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(*(problem.line for problem in self.problems))


class InvalidConfigError(ConfigError):
    """A refused configuration, with its problems as values.

    Args:
        found: at least one problem, in the order in which they are to be shown.
        source: the file that was read; empty if there is none.
    """

    def __init__(self, found: Iterable[Problem], source: str = "") -> None:
        self.found = tuple(found)
        super().__init__([problem.line for problem in self.found], source)


def invalid(message: str, *keys: Key) -> InvalidError:
    """The exception for one problem at `keys` below the value being looked at."""
    return InvalidError([Problem(keys, message)])


def render_path(keys: Sequence[Key]) -> str:
    """Writes a path with dots and brackets; unusual keys are quoted, so it stays one line."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _PLAIN_KEY.match(key) and len(key) <= _SHOWN:
            text += f".{key}" if text else key
        else:
            text += f"[{json.dumps(_shorten(key))}]"
    return text


def show(value: object) -> str:
    """Names a wrong value in a sentence: itself if it is short and harmless, else its kind."""
    if isinstance(value, str):
        return repr(_shorten(value))
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18):
        return kind_of(value) if isinstance(value, bool) else repr(value)
    return kind_of(value)


def kind_of(value: object) -> str:
    """Names the kind of a wrong value without repeating it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a value of type {type(value).__name__}"


def suggest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest known name, or nothing if none is near.

    Case, dashes and underscores are ignored, so `allowed_tools` finds `allowedTools`.
    """
    import difflib  # only wanted once something is wrong

    folded = {_fold(candidate): candidate for candidate in known}
    near = difflib.get_close_matches(_fold(name[:_SHOWN]), folded, n=1, cutoff=0.7)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def in_file_order(problems: Iterable[Problem], document: object) -> list[Problem]:
    """Sorts problems by where they stand in a document; what is missing comes before what is there.

    Args:
        problems: in any order; those at the same place keep it.
        document: the plain data that the problems are about.
    """
    ranks: dict[int, dict[object, int]] = {}

    def position(problem: Problem) -> list[int]:
        found, here = [], document
        for key in problem.keys:
            if isinstance(here, Mapping):
                if id(here) not in ranks:
                    ranks[id(here)] = {name: rank for rank, name in enumerate(here)}
                found.append(ranks[id(here)].get(key, -1))
                here = here.get(key)
            elif isinstance(here, list | tuple) and isinstance(key, int) and key < len(here):
                found.append(key)
                here = here[key]
            else:
                break
        return found

    return sorted(problems, key=position)


def _fold(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
