"""Settings of a ToolPolicy: what an entry of `policies` has, and what only the custom resource has.

Owns names, types and defaults of `ToolPolicy.spec`, and how it becomes an entry. The fields of an
entry are inherited, so both stay the same. What kars has and this release has not is known here,
so that it is refused with a sentence rather than left out.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from attrs import field, fields, frozen

from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import NEEDED, NO_KEY, GlobOrAny, Json, Name, Sentence
from kars_router.config.toolpolicy import (
    AgtProfile,
    AppliesTo,
    ApprovalMode,
    SimpleApproval,
    ToolPolicy,
)

_NOTHING: FrozenMap[Any, Any] = FrozenMap()


@frozen(kw_only=True)
class BundleRef:
    """A signed artifact in a registry, as kars has it.

    Attributes:
        registry: the registry's host.
        repository: the path in it.
        digest: digest of the artifact.
        artifact_type: its media type.
    """

    registry: str = field(default="", metadata=NEEDED)
    repository: str = field(default="", metadata=NEEDED)
    digest: str = field(default="", metadata=NEEDED)
    artifact_type: str = field(default="", metadata=NEEDED)


@frozen(kw_only=True)
class Selector(AppliesTo):
    """Which sandboxes and calls a policy is for.

    Attributes:
        tool: pattern of tools; empty for any.
        mcp_server: pattern of servers; empty for any.
        sandbox_match_labels: labels of the sandboxes that it is for, beside those that name it; no
            labels pick no sandbox.
    """

    tool: GlobOrAny = "*"
    mcp_server: GlobOrAny = "*"
    sandbox_match_labels: FrozenMap[str, str] = _NOTHING


class PolicyApprovalMode(enum.StrEnum):
    """When every call of a policy needs a person's approval; `AUTO` is never, `HUMAN` always."""

    NEVER = "never"
    ALWAYS = "always"
    ABOVE_THRESHOLD = "aboveThreshold"
    AUTO = "auto"
    HUMAN = "human"


_MODES: Final = {
    PolicyApprovalMode.ALWAYS: ApprovalMode.ALWAYS,
    PolicyApprovalMode.HUMAN: ApprovalMode.ALWAYS,
}


@frozen(kw_only=True)
class PolicyApproval(SimpleApproval):
    """Whether a person has to approve calls.

    Attributes:
        mode: when every call of the policy is held; `aboveThreshold` is not supported, so that
            such a policy is not `Ready`.
        threshold: an amount of money; not supported likewise.
        channel: a name for people; nothing is sent there.
    """

    mode: PolicyApprovalMode = PolicyApprovalMode.NEVER  # type: ignore[assignment]
    threshold: str | None = None
    channel: str | None = None


@frozen(kw_only=True)
class PolicyProfile(AgtProfile):
    """A profile in kars' own format, in one of two ways.

    Attributes:
        inline: it, as YAML text.
        bundle_ref: a signed bundle that holds it; not supported, so that such a policy is not
            `Ready`.
    """

    inline: str = ""
    bundle_ref: BundleRef | None = None


@frozen(kw_only=True)
class Commerce:
    """Bounds on money, as kars has them.

    Attributes:
        daily_cap: most in a day.
        monthly_cap: most in a month.
        per_transfer_cap: most at once.
        counterparty_allowlist: who may be paid.
    """

    daily_cap: str | None = None
    monthly_cap: str | None = None
    per_transfer_cap: str | None = None
    counterparty_allowlist: tuple[str, ...] = ()


@frozen(kw_only=True)
class ToolPolicySpec(ToolPolicy):
    """Rules that the calls of sandboxes have to pass.

    It is for the sandboxes that name it, and for those of its namespace that have the labels of
    `appliesTo.sandboxMatchLabels`.

    Attributes:
        display_name: a name for people.
        commerce: bounds on money; not supported, so that such a policy is not `Ready`.
    """

    name: Name | None = field(default=None, metadata=NO_KEY)
    bundle_ref: Json | None = field(default=None, metadata=NO_KEY)
    applies_to: Selector = Selector()
    agt_profile: PolicyProfile | None = None
    approval: PolicyApproval = PolicyApproval()
    commerce: Commerce | None = None
    display_name: Sentence | None = None

    def policy(self, name: str) -> ToolPolicy:
        """The entry of `policies` that it is.

        Args:
            name: the name of the resource.
        """
        own: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(ToolPolicy)}
        selector, profile = self.applies_to, self.agt_profile
        mode = _MODES.get(self.approval.mode, ApprovalMode.NEVER)
        own |= {
            "name": name,
            "applies_to": AppliesTo(
                tool=selector.tool,
                mcp_server=selector.mcp_server,
                sandbox_match_labels=selector.sandbox_match_labels,
            ),
            "agt_profile": profile and AgtProfile(inline=profile.inline),
            "approval": SimpleApproval(mode=mode, channel=self.approval.channel),
        }
        return ToolPolicy(**own)
