"""How the holding of a call can end, and what the model is told then.

Pure. Must not know who waits for what.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from kars_router.governance.approvals import Approval


@frozen(kw_only=True)
class Held:
    """How the holding of a call ended.

    Attributes:
        approved: whether the call may be made, once, now.
        code: why not, as a stable name; "" if it may.
        reason: the same as a sentence for the model.
        approval: its id, "" if there is none.
        by: who decided.
        retryable: whether the same call may be made again, and finds the approval then.
    """

    approved: bool = False
    code: str = ""
    reason: str = ""
    approval: str = ""
    by: str = ""
    retryable: bool = False


CANCELLED: Final = Held(code="cancelled", reason="The call was cancelled before it was made.")
GONE: Final = Held(code="agent_gone", reason="The agent has gone away; the call was not made.")
STOPPING: Final = Held(
    code="shutting_down",
    reason="The router is shutting down; the call was not made. Its approval is still open: the "
    "same call made again will find it.",
    retryable=True,
)
FAILED: Final = Held(
    code="approval_unavailable",
    reason="This call needs a person's approval, and the router cannot keep approvals at the "
    "moment; it was not made.",
    retryable=True,
)
UNANSWERED: Final = Held(
    code="approval_impossible",
    reason="The person behind the agent was asked to approve this call and did not decide; it was "
    "not made.",
)
UNASKABLE: Final = Held(
    code="approval_impossible",
    reason="This call needs the approval of the person behind the agent, and the agent's client "
    "offers no way to ask; it was not made.",
)
EXPIRED: Final = Held(
    code="approval_expired", reason="Nobody approved this call in time, so it was not made."
)


def too_many(limit: int) -> Held:
    """There is no room to wait."""
    return Held(
        code="too_many_held",
        reason=f"{limit} calls are waiting for approval already, so this one was not made. Try "
        "again later.",
        retryable=True,
    )


def denied(approval: Approval) -> Held:
    """Somebody has said no."""
    said = f" They said: {approval.comment}" if approval.comment else ""
    return Held(
        code="approval_denied",
        reason=f"A person was asked about this call and denied it; it was not made.{said}",
        approval=approval.id,
        by=approval.by,
    )
