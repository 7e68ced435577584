"""Reading the params of an agent's request, and saying what is wrong with them.

Pure. Must not know methods or servers.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kars_router.errors import AgentError
from kars_router.wire import jsonrpc
from kars_router.wire.duplicates import misspelt

Params = dict[str, bytes]
# What a request is about, or may be taken to be about.
_NAMES: Final = (
    *("name", "arguments", "uri", "ref", "argument", "context", "type"),
    *("_meta", "task", "requestState", "inputResponses"),
)
_KNOWN: Final = {name.casefold(): name for name in _NAMES}


def members(params: bytes) -> Params:
    """The members of a request's params, each as JSON.

    Raises:
        AgentError: the params are no object, or a server might read another one in them.
    """
    try:
        found = {k: bytes(v) for k, v in jsonrpc.members(params or b"{}").items()}
    except jsonrpc.MalformedError as error:
        raise AgentError(jsonrpc.INVALID_PARAMS, "params must be an object") from error
    check_spelling(found)
    return found


def text(value: bytes | None) -> str | None:
    """A member's value if it is a string."""
    if value is None or not value.startswith(b'"'):
        return None
    found: str = jsonrpc.decode(value)
    return found


def check_spelling(given: Params) -> None:
    """Sees that no member could be taken for one that the router reads.

    Raises:
        AgentError: one could.
    """
    meant = misspelt(given, _KNOWN)
    if meant is not None:
        wrong = f"a member is named {meant} but for its case, and might be taken for that"
        raise AgentError(jsonrpc.INVALID_PARAMS, wrong)


def written(params: Params) -> bytes:
    """Members as one JSON object."""
    return jsonrpc.encode({name: msgspec.Raw(value) for name, value in params.items()})


def string(params: Params, name: str, wrong: str) -> str:
    """A member's value.

    Raises:
        AgentError: it is no string; says what is wrong.
    """
    found = text(params.get(name))
    if found is None:
        raise AgentError(jsonrpc.INVALID_PARAMS, wrong)
    return found


def cursor(params: Params) -> str | None:
    """The cursor of a request for a list; None if it has none.

    Raises:
        AgentError: it is no string.
    """
    given = params.get("cursor", b"null")
    found = text(given)
    if given != b"null" and found is None:
        raise AgentError(jsonrpc.INVALID_PARAMS, "a cursor is a string")
    return found
