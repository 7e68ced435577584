"""Where in a JSON text secrets may be, found without decoding it.

Pure. Almost every result holds no secret, so what it costs to find that out is what redaction
costs: some substring searches over the bytes. Whatever `secrets` finds in a string of the text has
a sighting in that string or in the name before it; the reverse need not hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from attrs import define

from kars_router.config.toolpolicy import SecretKind

_K = SecretKind
_Confirm = Callable[[bytes, int], bool]


def _always(_: bytes, __: int) -> bool:
    return True


def _key_of(low: bytes, place: int) -> bool:
    before = low[max(0, place - 10) : place].rstrip(b"_-. ")
    return before.endswith((b"api", b"account", b"access", b"private"))


def _pass(low: bytes, place: int) -> bool:
    return low[place + 4 : place + 5] == b"w" or low[place + 4 : place + 10] == b"phrase"


# Words in lower case, each with a look at what is around it, and the kinds that need them.
_WORDS: Final[tuple[tuple[bytes, _Confirm, frozenset[SecretKind]], ...]] = (
    (b"pass", _pass, frozenset({_K.PASSWORD})),
    (b"pwd", _always, frozenset({_K.PASSWORD})),
    (b"secret", _always, frozenset({_K.PASSWORD, _K.AWS})),
    (b"token", _always, frozenset({_K.PASSWORD, _K.AWS})),
    (b"key", _key_of, frozenset({_K.PASSWORD, _K.AZURE, _K.PRIVATE_KEY})),
    (b"bearer", _always, frozenset({_K.BEARER})),
    (b"authorization", _always, frozenset({_K.BEARER})),
    (b"basic ", _always, frozenset({_K.BEARER})),
    (b"sig=", _always, frozenset({_K.AZURE})),
    (b"hooks.slack", _always, frozenset({_K.SLACK})),
    (b"-----begin", _always, frozenset({_K.PRIVATE_KEY})),
)
# How tokens begin that say by themselves what they are. The longest run of letters, digits, `_`
# and `-` in each of them has at least `_RUN` of them, and begins at most `_LEAD` bytes after it.
_BEGINNINGS: Final[dict[SecretKind, bytes]] = {
    _K.JWT: rb"eyJ",
    _K.AWS: rb"A[A-Z]{3}[A-Z2-7]{16}",
    _K.AZURE: rb"JQQJ99",
    _K.GITHUB: rb"gh[a-z]_|github_pat_",
    _K.GOOGLE: rb"AIza|GOCSPX-|ya29|1//0",
    _K.SLACK: rb"xox|xapp-",
    _K.OPENAI: rb"sk-",
}
_RUN: Final = 17
_LEAD: Final = 8
# Longer runs of letters and digits are pictures and the like. Only their ends are looked at.
_BLOB: Final = 512

_WORD_BYTES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_MASK: Final = bytes(97 if byte in _WORD_BYTES else 32 for byte in range(256))
_BLOB_BYTES: Final = _WORD_BYTES[:62] + b"+/"
_BLOB_MASK: Final = bytes(97 if byte in _BLOB_BYTES else 32 for byte in range(256))
_CREDENTIALS: Final = re.compile(
    rb":(?://|\\+/\\+/)[^\s/:@\"'<>?#]{0,256}+:[^\s/@\"'<>?#]{1,256}+@"
)
_ASCII_ESCAPE: Final = re.compile(rb"\\u00[2-7]")


@define
class Sightings:
    """Looks for secrets of some kinds."""

    _words: tuple[tuple[bytes, _Confirm], ...]
    _beginnings: re.Pattern[bytes] | None
    _credentials: bool
    _tilde: bool

    @classmethod
    def of(cls, kinds: frozenset[SecretKind]) -> Sightings:
        """Made ready for these kinds; for none it sees nothing."""
        begin = b"|".join(mark for kind, mark in _BEGINNINGS.items() if kind in kinds)
        return cls(
            tuple((word, confirm) for word, confirm, of in _WORDS if of & kinds),
            re.compile(begin) if begin else None,
            _K.URL_CREDENTIALS in kinds,
            _K.AZURE in kinds,
        )

    def within(self, doc: bytes) -> list[int]:
        """Places in a JSON text, in no order; a place is within the string that it is about."""
        if not self._words and self._beginnings is None and not self._credentials:
            return []
        places: list[int] = []
        doc = _without_blobs(doc)
        low = doc.lower()
        for word, confirm in self._words:
            place = low.find(word)
            while place >= 0:
                if confirm(low, place):
                    places.append(place)
                place = low.find(word, place + len(word))
        if self._beginnings is not None:
            places += _runs(doc, self._beginnings)
        if self._credentials:
            places += _ats(doc)
        if self._tilde:
            places += _tildes(doc)
        # What is escaped without need may hide any of the above.
        place = doc.find(b"\\u00")
        while place >= 0:
            if _ASCII_ESCAPE.match(doc, place):
                places.append(place)
            place = doc.find(b"\\u00", place + 4)
        return places


def _without_blobs(doc: bytes) -> bytes:
    """Blanks runs that are too long to be a token, but for their ends."""
    if len(doc) <= _BLOB:
        return doc
    mask = doc.translate(_BLOB_MASK)
    start = mask.find(b"a" * _BLOB)
    if start < 0:
        return doc
    parts: list[bytes] = []
    done = 0
    while start >= 0:
        end = mask.find(b" ", start)
        end = len(doc) if end < 0 else end
        # The first and the last of it stay: they may belong to something shorter beside it.
        begin, stop = start + 64, end - 64
        parts += (doc[done:begin], b" " * (stop - begin))
        done = stop
        start = mask.find(b"a" * _BLOB, end)
    return b"".join((*parts, doc[done:]))


def _runs(doc: bytes, beginnings: re.Pattern[bytes]) -> Iterator[int]:
    mask = doc.translate(_MASK)
    run = b"a" * _RUN
    start = mask.find(run)
    while start >= 0:
        end = mask.find(b" ", start)
        end = len(doc) if end < 0 else end
        for match in beginnings.finditer(doc, max(0, start - _LEAD), end):
            yield match.start()
        start = mask.find(run, end)


def _ats(doc: bytes) -> Iterator[int]:
    if b"@" in doc:
        for match in _CREDENTIALS.finditer(doc):
            yield match.start()


def _tildes(doc: bytes) -> Iterator[int]:
    place = doc.find(b"~")
    while place >= 0:
        if doc[place - 1 : place] == b"Q":
            yield place
        place = doc.find(b"~", place + 1)
