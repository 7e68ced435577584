"""The HTTP headers that repeat parts of a request of the stateless era, and how they are written.

Must not know which request needs which header.

Source: MCP 2026-07-28 "Streamable HTTP / Standard Request Headers" and "Value Encoding";
RFC 9110, section 5.5.
"""

from __future__ import annotations

import base64
import re
from typing import Final

METHOD_HEADER: Final = "mcp-method"
NAME_HEADER: Final = "mcp-name"
PARAM_PREFIX: Final = "mcp-param-"

_START: Final = "=?base64?"
_END: Final = "?="
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+\Z")
# Tabs are allowed inside of a field value, but nobody needs to send one.
_ADMITTED: Final = re.compile(r"[\t\x20-\x7e]*\Z")


def encode_value(text: str) -> str:
    """Writes any text as a header value.

    Printable ASCII stays as it is, unless it has spaces at an edge, which a reader would strip,
    or looks encoded. An empty text is encoded, too: empty headers get lost on the way.
    """
    plain = _PRINTABLE.match(text) and text == text.strip(" ")
    if plain and not _looks_encoded(text):
        return text
    # Halves of a surrogate pair cannot come from a message; whoever made them gets a question mark.
    return f"{_START}{base64.b64encode(text.encode(errors='replace')).decode()}{_END}"


def decode_value(header: str) -> str | None:
    """Reads a header value.

    Args:
        header: its octets as ISO 8859-1; spaces and tabs at its edges do not count.

    Returns:
        the text; None if it is written in a way that no client may use: characters outside of
        ASCII, or Base64 that is broken, not canonical, or no UTF-8.
    """
    value = header.strip(" \t")
    if not _looks_encoded(value):
        return value if _ADMITTED.match(value) else None
    payload = value[len(_START) : -len(_END)]
    try:
        data = base64.b64decode(payload)
        # Decoding skips over what it does not know; two spellings of one text are one too many.
        return data.decode() if base64.b64encode(data).decode() == payload else None
    except ValueError:  # broken Base64 is one, too
        return None


def _looks_encoded(value: str) -> bool:
    return (
        len(value) >= len(_START) + len(_END) and value.startswith(_START) and value.endswith(_END)
    )
