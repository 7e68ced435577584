"""`/api/v1/policy-status`: what is enforced, so that whoever wrote it can see that it is.

Owns the shape of that document. Must not know how anything is enforced.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import define, field

from kars_router.config.digests import digest_of_all, enforced_by
from kars_router.config.schema import Config


@define(eq=False)
class PolicyStatus:
    """What is in force since when, and what was refused since.

    Attributes:
        entries: one for each policy, server and lock.
        digest: of all of them.
        loaded: when they were put in force.
        refused: why a newer configuration was refused; empty if none was.
        refused_at: when.
    """

    entries: list[dict[str, Any]] = field(factory=list)
    digest: str = ""
    loaded: str = ""
    refused: tuple[str, ...] = ()
    refused_at: str | None = None

    def adopt(self, config: Config) -> None:
        """A configuration has been put in force."""
        self.loaded = _now()
        enforced = enforced_by(config)
        self.entries = [
            {"kind": each.kind, "name": each.name, "digest": each.digest} for each in enforced
        ]
        self.digest = digest_of_all(enforced)
        self.refused, self.refused_at = (), None

    def refuse(self, problems: Sequence[str]) -> None:
        """A newer configuration was refused; the old one stays."""
        self.refused, self.refused_at = tuple(problems), _now()

    def document(self) -> dict[str, Any]:
        """The answer."""
        return {
            "schemaVersion": 1,
            "digest": self.digest,
            "loadedAt": self.loaded,
            "count": len(self.entries),
            "entries": self.entries,
            "refused": {"at": self.refused_at, "problems": self.refused} if self.refused else None,
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
