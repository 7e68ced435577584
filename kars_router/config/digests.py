"""Digests of what is configured, the same wherever they are computed.

The router says which policies it enforces by naming their digests; who wrote a policy computes the
same one and compares.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from attrs import frozen

from kars_router.config.converter import to_plain
from kars_router.config.schema import Config


@frozen
class Enforced:
    """One thing that a router enforces.

    Attributes:
        kind: `ToolPolicy`, `McpServer` or `ToolsLock`.
        name: the policy's or server's, or the path of the lock.
        digest: of what it says.
    """

    kind: str
    name: str
    digest: str


def enforced_by(config: Config) -> tuple[Enforced, ...]:
    """What a router with this configuration enforces: its policies, servers and lock."""
    found = [
        Enforced("ToolPolicy", policy.name or f"policies[{index}]", digest_of(policy))
        for index, policy in enumerate(config.policies)
    ]
    found += [Enforced("McpServer", name, digest_of(s)) for name, s in config.servers.items()]
    if config.pins is not None:
        digest = digest_of_plain(_thawed(config.pins))
        found.append(Enforced("ToolsLock", str(config.tools_lock), digest))
    return tuple(found)


def digest_of_all(enforced: tuple[Enforced, ...]) -> str:
    """One digest for everything that a router enforces, as `/api/v1/policy-status` has it."""
    return digest_of_plain(
        [{"kind": each.kind, "name": each.name, "digest": each.digest} for each in enforced]
    )


def digest_of(section: object) -> str:
    """The digest of a section of the configuration, or of a resource's spec.

    It covers every key, defaults included, so spelling and order make no difference. Secrets are
    hidden before, so that a digest gives nothing away.

    Args:
        section: a structured section.

    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    return digest_of_plain(to_plain(section))


def digest_of_plain(value: object) -> str:
    """The digest of plain data; the order of keys makes no difference."""
    encoded = msgspec.json.encode(value, order="deterministic")
    return f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def _thawed(pins: Any) -> Any:
    return {name: _thawed(each) for name, each in pins.items()} if hasattr(pins, "items") else pins
