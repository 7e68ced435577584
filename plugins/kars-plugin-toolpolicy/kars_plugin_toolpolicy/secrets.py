"""What secrets look like, by kind, and how they are found in a text.

Pure. A shape is found by its mark, a few characters that it always has, and only there is an
expression tried. So a text without marks costs a handful of substring searches, and no expression
is ever run over a whole text. Every expression is bounded or possessive: the work is linear.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from attrs import frozen

from kars_router.config.toolpolicy import SecretKind

# A token stands alone: what is before it is no part of a word, unless that is a %-escape or the
# letter of an escape that was itself escaped.
_LEFT: Final = r"(?:(?<![A-Za-z0-9_-])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrtbf]))"
_WORD: Final = r"[A-Za-z0-9_-]"
_RIGHT: Final = rf"(?!{_WORD})"
_WITH_DIGIT: Final = r"(?=[A-Za-z._~+/=_-]*[0-9])"

# After a name such as `password`: what is between it and the value, and the value. Form snapshots
# put attributes in brackets between them.
_BETWEEN: Final = (
    r"(?:\\*[\"'`])?(?:\s?\[[^\]\n]{0,40}\]){0,3}\s{0,3}"
    r"(?P<sign>:=|=>|[:=]|%3[aAdD])(?P<gap>\s{0,3})"
)
_QUOTED: Final = r"(?P<mark>\\*[\"'`])(?P<quoted>(?:(?!(?P=mark))[^\n]){1,256})(?P=mark)"
_BARE: Final = r"(?P<bare>[^\s\"'`,;&<>(){}\[\]\\|]{4,256}+)(?![(\[{])"
_ELEMENT: Final = r">(?P<element>[^<>\s]{4,256}+)</"
_OPTION: Final = r"\s{1,3}(?P<option>[^\s\"'`-][^\s\"'`,;&<>(){}\[\]\\|]{3,255}+)"
_ASSIGNED: Final = rf"(?:{_BETWEEN}(?:{_QUOTED}|{_BARE})|{_ELEMENT}|{_OPTION})"


# Values that stand for a value: templates, stars, words of documentation and of code.
_TEMPLATE: Final = re.compile(r"[$<{%\[*\u2022.#]|(?i:xxx|redacted|env[.:]|process\.|os\.|self\.)")
_NAMES_ONLY: Final = re.compile(
    r"(?i)(?:string|str|text|none|null|nil|true|false|undefined|required|optional|hidden|empty"
    r"|unset|example|changeme|[a-z_.-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|key))\Z"
)
# What makes a token out of a word that also names places in lists, and an option out of a word.
_OF_CREDENTIALS: Final = re.compile(
    r"(?i:access|refresh|auth|api|session|private|secret|bearer)[_-]?\Z"
)
_OPTION_BEFORE: Final = re.compile(r"(?:^|(?<=\s))--?(?:[a-z]+-)*\Z")
_ESCAPED_AGAIN: Final = re.compile(r"\\(?:u00(?P<code>[2-7][0-9a-fA-F])|/)")
_UNESCAPED: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+/=.:@~%&?"
)

Span = tuple[int, int]
Check = Callable[[re.Match[str]], Span | None]


@frozen(kw_only=True)
class Shape:
    """One way in which secrets of a kind are written.

    Attributes:
        kind: the kind.
        marks: what one of them always has; in lower case if `fold`.
        expression: matched at a mark, less `offset`.
        check: says what of a match is secret, if anything.
        fold: whether marks are found in any case.
        offset: how many characters before the mark the secret begins.
    """

    kind: SecretKind
    marks: tuple[str, ...]
    expression: re.Pattern[str]
    check: Check
    fold: bool = False
    offset: int = 0


def plausible(value: str, *, strict: bool = False) -> bool:
    """Whether something that is called a password may be one, rather than stand for one.

    Args:
        value: the value.
        strict: whether prose may stand there, too; then it needs letters beside something else.
    """
    if len(value) < 4 or _TEMPLATE.match(value) or _NAMES_ONLY.match(value):
        return False
    if not strict:
        return True
    others = sum(not character.isalpha() for character in value.rstrip(".,:;!?"))
    return len(value) >= 6 and 0 < others < len(value)


def _whole(match: re.Match[str]) -> Span:
    return match.span("v") if "v" in match.re.groupindex else match.span()


def _assigned(match: re.Match[str]) -> Span | None:
    """The value behind a name, if the name means a secret and the value may be one."""
    text, start = match.string, match.start()
    option = _OPTION_BEFORE.search(text, max(0, start - 32), start) is not None
    name = text[start : start + 3].lower()
    if name == "tok" and not (option or _OF_CREDENTIALS.search(text, max(0, start - 16), start)):
        return None
    if match["option"] is not None and not option:
        return None
    group = next(each for each in ("quoted", "bare", "element", "option") if match[each])
    if name == "pwd" and match[group].startswith(("/", "~", ".")):
        return None  # the working directory
    strict = group == "option" or (group == "bare" and match["sign"] == ":" and match["gap"] != "")
    return match.span(group) if plausible(match[group], strict=strict) else None


def _basic(match: re.Match[str]) -> Span | None:
    """The value of a header, if it decodes to a name and a password (RFC 7617)."""
    try:
        decoded = base64.b64decode(match["v"] + "==")
    except (binascii.Error, ValueError):
        return None
    return match.span("v") if b":" in decoded else None


def _credentials(match: re.Match[str]) -> Span | None:
    return None if _TEMPLATE.match(match["password"]) else match.span("v")


def _shape(kind: SecretKind, marks: str, expression: str, *, offset: int = 0) -> Shape:
    """A shape whose marks say what it is; they are separated by spaces."""
    return Shape(
        kind=kind,
        marks=tuple(marks.split()),
        expression=re.compile(expression),
        check=_whole,
        offset=offset,
    )


def _folded(kind: SecretKind, mark: str, expression: str, check: Check = _whole) -> Shape:
    """A shape with one mark in any case."""
    return Shape(
        kind=kind, marks=(mark,), expression=re.compile(expression), check=check, fold=True
    )


def _named(mark: str, name: str) -> Shape:
    return _folded(SecretKind.PASSWORD, mark, f"(?i:{name}){_ASSIGNED}", _assigned)


_K = SecretKind
SHAPES: Final[tuple[Shape, ...]] = (
    _shape(
        _K.PRIVATE_KEY,
        "-----BEGIN",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?:[^-]++|-(?!----))*+-----END [A-Z0-9 ]{0,40}-----|[A-Za-z0-9+/=\s\\]*+)",
    ),
    _shape(
        _K.JWT,
        "eyJ",
        rf"{_LEFT}eyJ{_WORD}{{8,}}+\.(?:(?:eyJ|ewo|e30){_WORD}*+\.{_WORD}*+"
        rf"|{_WORD}*+\.{_WORD}{{8,}}+\.{_WORD}{{16,}}+\.{_WORD}{{16,}}+)",
    ),
    _folded(
        _K.BEARER,
        "bearer",
        rf"{_LEFT}(?i:bearer)(?:\s|%20|\+){{1,4}}(?P<v>{_WITH_DIGIT}[A-Za-z0-9._~+/=-]{{16,}}+)",
    ),
    _folded(
        _K.BEARER,
        "authorization",
        r"(?i:authorization)\\*[\"']?\s{0,3}[:=]\s{0,3}\\*[\"']?(?:(?i:token|apikey|digest)\s{1,3})?"
        rf"(?P<v>{_WITH_DIGIT}[A-Za-z0-9._~+/=-]{{16,}}+)",
    ),
    _folded(
        _K.BEARER,
        "basic ",
        rf"{_LEFT}(?i:basic)\s{{1,3}}(?P<v>[A-Za-z0-9+/]{{8,}}+={{0,2}})",
        _basic,
    ),
    _shape(_K.AWS, "AKIA ASIA ABIA ACCA", rf"{_LEFT}A[A-Z]{{3}}[A-Z2-7]{{16}}{_RIGHT}"),
    _folded(
        _K.AWS,
        "secret",
        r"(?i:secret_?access_?key)\\*[\"']?\s{0,3}[:=>]{1,2}\s{0,3}\\*[\"']?"
        r"(?P<v>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])",
    ),
    _folded(
        _K.AWS,
        "session",
        r"(?i:session_?token)\\*[\"']?\s{0,3}[:=>]{1,2}\s{0,3}\\*[\"']?(?P<v>[A-Za-z0-9/+=]{100,}+)",
    ),
    _folded(
        _K.AZURE,
        "accountkey",
        r"(?i:accountkey)=(?P<v>[A-Za-z0-9+/]{40,}+={0,2})",
    ),
    _folded(
        _K.AZURE,
        "accesskey",
        r"(?i:accesskey)=(?P<v>[A-Za-z0-9+/]{40,}+={0,2})",
    ),
    _shape(_K.AZURE, "sig=", r"(?<=[?&;])sig=(?P<v>[A-Za-z0-9%+/_-]{40,}+={0,2})"),
    _shape(
        _K.AZURE,
        "Q~",
        r"(?<![\w~.-])[A-Za-z0-9_~.-]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}(?![\w~-])",
        offset=4,
    ),
    _shape(
        _K.AZURE,
        "JQQJ99",
        rf"{_LEFT}[A-Za-z0-9]{{52}}JQQJ99[A-Za-z0-9]{{20,30}}{_RIGHT}",
        offset=52,
    ),
    _shape(
        _K.GITHUB,
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        rf"{_LEFT}(?:gh[a-z]_[A-Za-z0-9_]{{36,}}+|github_pat_[A-Za-z0-9_]{{50,}}+)",
    ),
    _shape(_K.GOOGLE, "AIza", rf"{_LEFT}AIza{_WORD}{{35}}{_RIGHT}"),
    _shape(_K.GOOGLE, "ya29.", rf"{_LEFT}ya29\.[A-Za-z0-9_.-]{{20,}}+"),
    _shape(_K.GOOGLE, "GOCSPX-", rf"{_LEFT}GOCSPX-{_WORD}{{24,}}+"),
    _shape(_K.GOOGLE, "1//0", rf"(?<![\w/+-])1//0{_WORD}{{40,}}+"),
    _shape(
        _K.SLACK,
        "xox xapp-",
        rf"{_LEFT}(?:xox[a-z](?:\.xox[a-z])?|xapp)-(?=[A-Za-z-]*[0-9])[A-Za-z0-9-]{{20,}}+",
    ),
    _shape(_K.SLACK, "hooks.slack", r"hooks\.slack\.com/(?P<v>[a-z]{1,20}/[A-Za-z0-9+/]{30,}+)"),
    _shape(_K.OPENAI, "sk-", rf"{_LEFT}sk-(?=[A-Za-z_-]*[0-9])(?=[a-z0-9_-]*[A-Z]){_WORD}{{32,}}+"),
    Shape(
        kind=_K.URL_CREDENTIALS,
        marks=("://",),
        expression=re.compile(
            r"://(?P<v>[^\s/:@\"'<>?#\[\]{}$]{0,256}+:(?P<password>[^\s/@\"'<>?#]{1,256}+))@"
        ),
        check=_credentials,
    ),
    _named("passw", r"passw(?:or)?d"),
    _named("passphrase", "passphrase"),
    _named("pwd", "pwd"),
    _named("secret", r"secret(?:[_-]?(?:access[_-]?)?key)?"),
    _named("api", r"api[_-]?key"),
    _named("token", "token"),
)

# Names of members whose strings are secrets, without case and punctuation.
_MEMBERS: Final[Mapping[str, SecretKind]] = {
    "authorization": _K.BEARER,
    "proxyauthorization": _K.BEARER,
    "secretaccesskey": _K.AWS,
    "sessiontoken": _K.AWS,
    "accountkey": _K.AZURE,
    "sharedaccesskey": _K.AZURE,
    "privatekey": _K.PRIVATE_KEY,
    "secret": _K.PASSWORD,
    "xapikey": _K.PASSWORD,
}
_ENDINGS: Final = re.compile(
    r"(?:passw(?:or)?d|passphrase|pwd|(?:client|app|api|shared)secret|secretkey|apikey"
    r"|(?:access|refresh|auth|api|private|secret|bearer)token)\Z"
)
_PUNCTUATION: Final = re.compile(r"[_.\s-]+")


def member_kind(name: str) -> SecretKind | None:
    """What the string of a member of that name is, if such strings are secrets."""
    bare = _PUNCTUATION.sub("", name[:64]).lower()
    kind = _MEMBERS.get(bare)
    return SecretKind.PASSWORD if kind is None and _ENDINGS.search(bare) else kind


def secret_member(kind: SecretKind, value: str) -> bool:
    """Whether the string of such a member is one, rather than stands for one."""
    if kind is SecretKind.BEARER:
        return re.search(r"\S{8}\Z", value) is not None and plausible(value, strict=True)
    if kind in (SecretKind.AWS, SecretKind.AZURE, SecretKind.PRIVATE_KEY):
        return len(value) >= 32 and plausible(value)
    return plausible(value)


def found(text: str, kinds: Iterable[SecretKind]) -> list[tuple[Span, SecretKind]]:
    """Where the secrets of these kinds stand in a text; spans may overlap."""
    wanted = frozenset(kinds)
    spans: list[tuple[Span, SecretKind]] = []
    folded = ""
    for shape in SHAPES:
        if shape.kind not in wanted:
            continue
        if shape.fold and not folded:
            folded = fold(text)
        for mark in shape.marks:
            spans += _matches(shape, mark, text, folded if shape.fold else text)
    return spans


def hide(text: str, kinds: Iterable[SecretKind]) -> str:
    """The text with each secret replaced by its kind, or the same text object."""
    wanted = frozenset(kinds)
    spans = found(text, wanted)
    if "\\" in text:
        # JSON within the text may escape what JSON need not.
        loose = _ESCAPED_AGAIN.sub(_unescape, text)
        if loose != text:
            more = found(loose, wanted)
            if len(more) > len(spans):
                text, spans = loose, more
    return replace(text, ((span, kind.value) for span, kind in spans))


def replace(text: str, spans: Iterable[tuple[Span, str]]) -> str:
    """Replaces spans of a text by what they held; those that overlap become one."""
    parts: list[str] = []
    done = 0
    for (start, end), kind in sorted(spans, key=lambda each: (each[0][0], -each[0][1])):
        if start >= done:
            parts += (text[done:start], label(kind))
        done = max(done, end)
    return "".join((*parts, text[done:])) if parts else text


def label(kind: str) -> str:
    """What stands where a secret stood."""
    return f"[redacted:{kind}]"


def fold(text: str) -> str:
    """The text in lower case, each character in its place."""
    folded = text.lower()
    # One character grows when it is made lower: a capital I with a dot.
    return folded if len(folded) == len(text) else text.replace("\u0130", "i").lower()


def _matches(
    shape: Shape, mark: str, text: str, searched: str
) -> Iterator[tuple[Span, SecretKind]]:
    place = searched.find(mark)
    while place >= 0:
        after = place + len(mark)
        match = shape.expression.match(text, max(0, place - shape.offset))
        span = shape.check(match) if match else None
        if span is not None:
            yield span, shape.kind
            after = max(after, span[1])
        place = searched.find(mark, after)


def _unescape(match: re.Match[str]) -> str:
    code = match["code"]
    character = chr(int(code, 16)) if code else "/"
    return character if character in _UNESCAPED else match[0]
