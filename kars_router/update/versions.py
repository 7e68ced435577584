"""Versions: which strings are accepted as one, and which version is newer.

Pure. A version from an index, a changelog or the cache ends up on a terminal, in a URL and in the
arguments of an installer, so only the canonical spelling of PEP 440 is let through, and no local
versions (`+...`): nothing of it can be taken for an option, a path or an escape sequence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from packaging.version import Version

# PEP 440, appendix B, without local versions. The spans bound what `int` has to do.
_CANONICAL: Final = re.compile(
    r"(?:[1-9][0-9]{0,8}!)?"
    r"(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){0,8}"
    r"(?:(?:a|b|rc)(?:0|[1-9][0-9]{0,8}))?"
    r"(?:\.post(?:0|[1-9][0-9]{0,8}))?"
    r"(?:\.dev(?:0|[1-9][0-9]{0,8}))?"
)
LONGEST: Final = 64


def is_version(text: str) -> bool:
    """Whether this is the canonical spelling of a public version."""
    return len(text) <= LONGEST and _CANONICAL.fullmatch(text) is not None


def is_newer(text: str, than: str) -> bool:
    """Whether one version comes after another.

    Args:
        text: of a release; anything that is no canonical version is not newer.
        than: what is installed, in any spelling of PEP 440; nothing is newer than nonsense.
    """
    # Takes a while to import, and most commands never get here.
    from packaging.version import InvalidVersion, Version

    if not is_version(text):
        return False
    try:
        return Version(text) > Version(than)
    except InvalidVersion:
        return False


def canonical(version: Version) -> str | None:
    """The one spelling of a version, or None if it is not one that is let through."""
    text = str(version)
    return text if is_version(text) else None
