"""What a failed exchange says: is the session lost, and did the server act on the message.

Two pure judgements over one `Failure`. The first is the built-in opinion behind the hook
`kars_classify_loss`; the second decides a call's fate and is not open to plugins, because a wrong
answer there duplicates calls.

Source: MCP 2025-11-25 "Session Management" (404 with a session id); RFC 9110, section 9.2.2.
"""

from __future__ import annotations

import re
from typing import Final

from kars_router.model import Failure, Fate, LossVerdict, Phase, Sent

# Servers answer 400 for many reasons. Only a text about the session itself counts, and
# "sessionStorage key missing" is about a browser's storage, not about the session.
_SESSION_GONE: Final = re.compile(
    r"""not\ initialized
    | \bsession(?:_?id)?\b(?!\s*storage)[^.;\n]{0,40}?
      \b(?:expired|not\ found|unknown|invalid|missing|terminated|no\ longer|does\ not\ exist)\b
    | \b(?:expired|unknown|invalid|missing|terminated|no\ valid)\s+(?:mcp[- ])?session(?:_?id)?\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Of transports that carry a whole session over one channel: its end is the session's.
CHANNEL_CLOSED: Final = "channel_closed"

_NOT_FOUND: Final = 404
# MCP 2026-07-28: wrong headers, a missing capability, an unknown revision. All are found out before
# a server looks at what it is to do.
_REFUSED_UNREAD: Final = (-32020, -32021, -32022)
_BAD_REQUEST: Final = 400
_TOO_MANY: Final = 429
_CLIENT_ERRORS: Final = range(400, 500)
_REQUEST_TIMEOUT: Final = 408


def classify(failure: Failure) -> LossVerdict | None:
    """The built-in opinion on whether a failure means that the session is gone.

    Args:
        failure: what happened.

    Returns:
        a verdict, or None where nothing is known (transport errors: the session may live on).
    """
    if failure.code == CHANNEL_CLOSED:
        return LossVerdict(True, "the channel to the server ended")
    if failure.phase is Phase.CONNECT or failure.status is None:
        return None
    if not failure.had_session:
        return LossVerdict(False, "no session id had been sent")
    if failure.status == _NOT_FOUND:
        return LossVerdict(True, "the server does not know the session any more (404)")
    if failure.status == _BAD_REQUEST and _SESSION_GONE.search(failure.body):
        reason = "the server says that the session is gone (400)"
        # Servers quote what they refuse, so these may be the words of an argument.
        return LossVerdict(True, reason, tentative=True)
    return LossVerdict(False, f"status {failure.status} says nothing about the session")


def fate_of(failure: Failure) -> Fate:
    """What is known of a failed message's effect on its server.

    A server acts on a message only once it has all of it, so a message that was not completely
    accepted was not executed. A 4xx status is the server's word that it refused the message
    before acting on it. Everything else after the last byte is unknown, and so is what a server
    that answered before it had the whole message has done with it.
    """
    status = failure.status
    if failure.phase is Phase.LISTEN and failure.sent is Sent.YES:
        return Fate.UNKNOWN  # the status answers the GET that asked for the rest of an answer
    if failure.begun:
        return Fate.UNKNOWN
    if status is None and failure.rpc_code in _REFUSED_UNREAD:
        return Fate.NOT_EXECUTED
    if failure.sent is not Sent.YES and status is None:
        return Fate.NOT_EXECUTED
    if status is not None and status in _CLIENT_ERRORS and status != _REQUEST_TIMEOUT:
        return Fate.NOT_EXECUTED
    return Fate.UNKNOWN


def is_retryable(failure: Failure) -> bool:
    """Whether the agent may simply make the same call again later."""
    if fate_of(failure) is not Fate.NOT_EXECUTED:
        return False
    return failure.status is None or failure.status in (_NOT_FOUND, _TOO_MANY)
