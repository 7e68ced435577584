"""Settings of a ToolPolicy: what an entry of `policies` has, and what only the custom resource has.

Owns names, types and defaults of `ToolPolicy.spec`, and how it becomes an entry. The fields of an
entry are inherited, so both stay the same. What kars has and this release has not is known here,
so that it is refused with a sentence rather than left out.
"""

from __future__ import annotations

from typing import Any

from attrs import field, fields, frozen

from kars_router.config.marks import NO_KEY, Json, Name, Sentence
from kars_router.config.toolpolicy import AgtProfile, ToolPolicy


@frozen(kw_only=True)
class BundleRef:
    """A signed artifact in a registry, as kars has it.

    Attributes:
        registry: the registry's host.
        repository: the path in it.
        digest: digest of the artifact.
        artifact_type: its media type.
    """

    registry: str = ""
    repository: str = ""
    digest: str = ""
    artifact_type: str = ""


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
    agt_profile: PolicyProfile | None = None
    commerce: Commerce | None = None
    display_name: Sentence | None = None

    def policy(self, name: str) -> ToolPolicy:
        """The entry of `policies` that it is.

        Args:
            name: the name of the resource.
        """
        own: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(ToolPolicy)}
        profile = self.agt_profile and AgtProfile(inline=self.agt_profile.inline)
        return ToolPolicy(**{**own, "name": name, "agt_profile": profile})
