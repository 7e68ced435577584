"""What a server says when it refuses a token. Pure.

Source: RFC 9110 section 11.6.1, RFC 6750 section 3, RFC 9728 section 5.1.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

INSUFFICIENT_SCOPE: Final = "insufficient_scope"
# More than any request has a use for; a server can make the router ask for so many at most.
MOST_SCOPES: Final = 32
_LONGEST: Final = 8 * 1024
_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PART: Final = re.compile(rf'({_NAME})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_NAME}))|({_NAME})')
_ESCAPED: Final = re.compile(r"\\(.)")
_SCOPE: Final = re.compile(r"[!#-\[\]-~]{1,256}\Z")  # RFC 6749 section 3.3


@frozen(kw_only=True)
class Challenge:
    """The `Bearer` challenge of a refusal; all of it untrusted.

    Attributes:
        error: its error code; "" if there is none.
        scopes: what it takes; at most 32.
        resource_metadata: where the server's metadata is; "" if it does not say.
    """

    error: str = ""
    scopes: tuple[str, ...] = ()
    resource_metadata: str = ""


def parse(value: str) -> Challenge:
    """Reads the first `Bearer` challenge.

    Args:
        value: the `WWW-Authenticate` fields, joined by commas; what comes after 8 KiB is ignored.
    """
    found: dict[str, str] = {}
    bearer = False
    for part in _PART.finditer(value[:_LONGEST]):
        name, quoted, plain, scheme = part.groups()
        if scheme is not None:
            if bearer:
                break
            bearer = scheme.lower() == "bearer"
        elif bearer:
            text = plain if quoted is None else _ESCAPED.sub(r"\1", quoted)
            found.setdefault(name.lower(), text)
    return Challenge(
        error=found.get("error", ""),
        scopes=union((), tuple(found.get("scope", "").split(" "))),
        resource_metadata=found.get("resource_metadata", ""),
    )


def union(asked: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[str, ...]:
    """All scopes that are asked for, then those wanted beside, up to 32 in all; no bad ones."""
    more = dict.fromkeys(scope for scope in wanted if _SCOPE.match(scope) and scope not in asked)
    return (*asked, *list(more)[: max(0, MOST_SCOPES - len(asked))])
