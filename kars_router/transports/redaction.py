"""Hiding secrets in what a server sent back.

Pure. Excerpts of answers go to the log and to operators; servers like to quote the token that they
refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# Shorter ones are words or numbers that an excerpt holds for other reasons.
SHORTEST: Final = 4
_HIDDEN: Final = "***"


def redact(text: str, secrets: Iterable[str]) -> str:
    """Replaces secrets that a server repeats, also one that the end of an excerpt has cut off.

    Args:
        text: an excerpt of what the server sent, or a detail made from it.
        secrets: what must not appear, each of at least `SHORTEST` characters; case is ignored.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        for spelled in (secret, secret.replace("/", "\\/")):  # the latter as PHP writes JSON
            text = re.sub(re.escape(spelled), _HIDDEN, text, flags=re.IGNORECASE)
            if " " in spelled:
                continue  # else a mere "Bearer" at the end would be hidden
            for size in range(min(len(spelled) - 1, len(text)), SHORTEST - 1, -1):
                if text[-size:].lower() == spelled[:size].lower():
                    text = text[:-size] + _HIDDEN
                    break
    return text
