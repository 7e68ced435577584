"""What the person behind an agent is asked about a held call, and what the agent hears meanwhile.

Pure but for the asking. Source: MCP 2025-11-25 and 2026-07-28 "Elicitation", "Progress".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, Protocol

from kars_router.governance.approvals import Approval
from kars_router.wire import capabilities, jsonrpc, progress, raw

ELICIT: Final = "elicitation/create"
PROGRESS: Final = "notifications/progress"
_LONGEST_SHOWN: Final = 2000
_WORDS: Final = {b"true": True, b"false": False}


class Reply(Protocol):
    """What an agent answered: a result or an error, as JSON."""

    @property
    def result(self) -> bytes | None:
        """The result, or None."""
        ...


class Asker(Protocol):
    """The agent's side of a request, as far as a held call needs it; a `Caller` is one."""

    capabilities: bytes
    withdrawn: bool
    on_withdraw: Callable[[], None] | None

    @property
    def audible(self) -> bool:
        """See `Caller.audible`."""
        ...

    def notify(self, method: str, params: bytes) -> None:
        """See `Caller.notify`."""
        ...

    async def ask(self, method: str, params: bytes) -> Reply:
        """See `Caller.ask`."""
        ...


def can_answer(asker: Asker) -> bool:
    """Whether somebody behind the agent can be asked."""
    return capabilities.allows(asker.capabilities, ELICIT, b'{"mode":"form"}') is None


async def ask(asker: Asker, approval: Approval) -> bool | None:
    """Asks the person behind an agent.

    Returns:
        True or False as the person decided; None if there was no decision, because the question
        was put away or could not be put.

    Cancellation takes the question back.
    """
    reply = await asker.ask(ELICIT, jsonrpc.encode(question(approval)))
    if reply.result is None:
        return None
    fields = raw.fields(reply.result) or {}
    action = raw.text(fields.get("action"))
    if action == "decline":
        return False
    content = raw.fields(fields.get("content")) or {}
    if action != "accept" or "approve" not in content:
        return None
    return _WORDS.get(bytes(content["approve"]).strip())


def question(approval: Approval) -> dict[str, Any]:
    """The params of the `elicitation/create` for a held call."""
    shown = approval.arguments
    if len(shown) > _LONGEST_SHOWN:
        shown = f"{shown[:_LONGEST_SHOWN]}... (cut)"
    lines = [
        f"The agent wants to use {plain(approval.name)} on the server {approval.server}.",
        "This needs your approval.",
        approval.reason,
        f"Arguments: {shown}" if shown else "",
    ]
    return {
        "message": "\n".join(line for line in lines if line),
        "requestedSchema": {
            "type": "object",
            "properties": {
                "approve": {
                    "type": "boolean",
                    "title": "Let this call be made, once",
                    "default": False,
                }
            },
            "required": ["approve"],
        },
    }


def plain(text: str) -> str:
    """A text from elsewhere in which nothing turns other text around or hides in it.

    In JSON, what is written in its place says the same.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def token_of(params: bytes) -> bytes:
    """The progress token of a request, as JSON; empty if it wants no progress."""
    return progress.replace_token(params, b"0")[1]


def waiting(token: bytes, count: int, seconds_left: float) -> bytes:
    """The params of a progress notification that says that a call is held.

    The values rise towards 0 and stay below it, so that those of the server, which come afterwards
    and begin at 0 or above, still rise.

    Args:
        token: the agent's progress token, as JSON.
        count: how many came before it.
        seconds_left: seconds until the answer is no.
    """
    said = {
        "progress": -1 / (count + 1),
        "message": f"Waiting for a person to approve this call, {max(seconds_left, 0):.0f} s left",
    }
    return progress.with_token(jsonrpc.encode(said), token)
