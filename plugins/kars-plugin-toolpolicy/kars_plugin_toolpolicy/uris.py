"""Ways to spell a URI that a server may take for the same thing.

Pure. Servers are lenient in ways of their own, and an agent may choose among all of them. What is
here errs on the side of too many: they only ever make a rule match that denies or holds.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:(?://[^/?#]*)?)([^?#]*)(.*)\Z", re.DOTALL)
_LOOSE: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*):(?://(?P<place>[^/?#]*))?(?P<path>[^?#]*)"
    r"(?P<query>(?:\?[^#]*)?)",
    re.IGNORECASE | re.DOTALL,
)
_ROUNDS: Final = 3  # of percent signs that were escaped themselves
_BLANK: Final = "".join(map(chr, range(0x21)))
_FILLERS: Final = str.maketrans("", "", "\t\n\r")
_PORTS: Final = {"http": ":80", "https": ":443", "ws": ":80", "wss": ":443", "ftp": ":21"}
_HERE: Final = ("", "localhost", "127.0.0.1", "[::1]")


def spellings(uri: str) -> tuple[str, ...]:
    """The URI, and what most readers make of it: `..` and percent signs resolved."""
    found = {uri: None}
    for text in (uri, unquote(uri)):
        found[text] = None
        whole = _URI.match(text)
        if whole and "/." in whole[2].replace("\\", "/"):
            path = posixpath.normpath(whole[2].replace("\\", "/"))
            found[f"{whole[1]}{path}{whole[3]}"] = None
    return tuple(found)


def aliases(uri: str) -> tuple[str, ...]:
    """What some readers may make of the URI.

    White space is passed over (as the WHATWG's URL Standard has it), `%2525` read more than once,
    slashes are joined and turned, queries and fragments ignored, names of hosts brought into one
    form; `file:/x` and `file://localhost/x` are `file:///x` (RFC 8089).
    """
    found: dict[str, None] = {}
    text = uri
    for _ in range(_ROUNDS):
        for each in (text, unicodedata.normalize("NFKC", text)):
            found.update(dict.fromkeys(_forms(each)))
        before, text = text, unquote(text)
        if text == before:
            break
    return tuple(found)


def _forms(text: str) -> Iterator[str]:
    text = text.strip(_BLANK).translate(_FILLERS)
    yield text
    whole = _LOOSE.match(text)
    if whole is None:
        return
    scheme, place = whole["scheme"].lower(), whole["place"]
    path = whole["path"].replace("\\", "/")
    if place is not None:
        place = place.rpartition("@")[2].removesuffix(_PORTS.get(scheme, ":")).rstrip(".")
    if scheme == "file" and (place is None or place.lower() in _HERE):
        place, path = "", path if path.startswith("/") else f"/{path}"
    start = f"{scheme}:" if place is None else f"{scheme}://{place}"
    flat = posixpath.normpath(re.sub("/{2,}", "/", path)) if path else ""
    for each in dict.fromkeys((path, flat, f"{flat}/")):
        yield f"{start}{each}{whole['query']}"
        yield f"{start}{each}"
