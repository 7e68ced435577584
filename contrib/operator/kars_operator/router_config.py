"""The router's configuration for one sandbox, as the document that stands in its ConfigMap.

Owns which keys the operator sets. The router's own reader checks what comes out, so that nothing
is rolled out that a router would refuse. Must not know Kubernetes objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import evolve

from kars_operator import names
from kars_operator.settings import Settings
from kars_router.config.converter import to_plain
from kars_router.config.document import write_document
from kars_router.config.load import build
from kars_router.config.schema import Config, LogLevel
from kars_router.config.toolpolicy import AppliesTo, Default, ToolPolicy

# Keys that a running router does not take over; another value needs another process.
_FIXED: Final = ("listen", "admin", "state", "audit", "plugins", "log")
_NOTHING: Final = to_plain(ToolPolicy())
_AUDIT: Final = {"path": f"{names.STATE_DIRECTORY}/audit.jsonl", "keep": 4}


def document(
    settings: Settings,
    servers: Mapping[str, Mapping[str, Any]],
    policies: Sequence[ToolPolicy],
    *,
    log_level: LogLevel = LogLevel.INFO,
) -> dict[str, Any]:
    """The document, keys in the order in which a person reads them.

    Args:
        settings: the operator's.
        servers: the entry of each server by its name.
        policies: what calls have to pass, each with its name.
        log_level: the least important lines that the router writes.
    """
    made: dict[str, Any] = {
        "listen": f"127.0.0.1:{settings.agent_port}",
        "admin": f"0.0.0.0:{settings.admin_port}",
        "servers": {name: dict(servers[name]) for name in sorted(servers)},
    }
    if policies:
        made["policies"] = [_sparse(policy) for policy in policies]
    made["audit"] = dict(_AUDIT)
    made["shutdownGrace"] = f"{settings.grace}s"
    made["log"] = {"format": "json", "level": log_level.value}
    return made


def read(made: Mapping[str, Any], source: str) -> Config:
    """What a router makes of a document.

    Args:
        made: the document.
        source: what to call it in messages.

    Raises:
        ConfigError: with every problem.
    """
    return build(dict(made), source=source, pinned=False)


def write(made: Mapping[str, Any]) -> str:
    """The document as JSON, which is YAML as well; the same one always gives the same text.

    A router reads it without its YAML parser, of which it would keep 1.4 MiB after every change.
    """
    return write_document(made)


def needs_restart(made: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a document that a running router does not take over."""
    return {key: made[key] for key in _FIXED if key in made}


def denial_of_all(name: str) -> ToolPolicy:
    """Stands in for a policy that cannot be used: where nobody decides, nothing is called."""
    return ToolPolicy(name=name, default=Default.DENY)


def for_router(policy: ToolPolicy, name: str) -> ToolPolicy:
    """A policy as a router gets it: with its name, without the choice of sandboxes."""
    applies = policy.applies_to
    everywhere = AppliesTo(tool=applies.tool, mcp_server=applies.mcp_server)
    return evolve(policy, name=name, applies_to=everywhere)


def _sparse(policy: ToolPolicy) -> dict[str, Any]:
    plain = to_plain(policy)
    return {key: value for key, value in plain.items() if value != _NOTHING[key]}
