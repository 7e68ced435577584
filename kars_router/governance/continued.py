"""Approved calls of which the server wants to hear more: the next round needs no new approval.

Pure but for its memory. A round belongs to what was approved only if the agent, the server, the
tool and the arguments are the same, and it opens once. Must not know who approves.

Source: MCP 2026-07-28 "Multi Round-Trip Requests".
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from kars_router.model import GovernedCall
from kars_router.wire import envelope, raw

_MOST: Final = 1024
_STATE: Final = "requestState"
# What differs from round to round.
_FREE: Final = ("_meta", "inputResponses", _STATE)


class Continued:
    """What servers gave to go on with; forgotten with the process, and then it is asked anew."""

    def __init__(self) -> None:
        self._approvals: OrderedDict[bytes, str] = OrderedDict()

    def take(self, call: GovernedCall) -> str:
        """The approval that a call is a further round of; "" if it is none. Each opens once."""
        if _STATE.encode() not in call.params:
            return ""
        return self._approvals.pop(_key(call, call.params), "")

    def note(self, call: GovernedCall, result: bytes, approval: str) -> None:
        """Notes that the server wants to hear more of an approved call, if that is so.

        Args:
            call: the call, as it was made.
            result: the server's result, as it came.
            approval: what approved the call.
        """
        if _STATE.encode() in result and envelope.result_type(result) == envelope.INPUT_REQUIRED:
            self._approvals[_key(call, result)] = approval
            while len(self._approvals) > _MOST:
                self._approvals.popitem(last=False)


def _key(call: GovernedCall, holder: bytes) -> bytes:
    state = (raw.fields(holder) or {}).get(_STATE, b"")
    params = raw.fields(call.params) or {}
    kept = sorted((name, bytes(value)) for name, value in params.items() if name not in _FREE)
    parts = [call.agent, call.server, call.method, call.name, kept, bytes(state)]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).digest()
