"""For tests of policies: policies and calls as people write them, decisions in a word or three.

>>> browser = engine({"name": "p", "rules": [{"name": "all", "effect": "allow"}]})
>>> said(browser.decide(call(tool="click", args={"x": 1})))
'allow p/all'

Owns no meaning: what policies say is the engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from kars_plugin_toolpolicy.engine import Engine
from kars_router.config.load import build
from kars_router.config.toolpolicy import ToolPolicy
from kars_router.model import Decision, GovernedCall, Ruling

_METHODS: Final = {
    "tool": "tools/call",
    "resource": "resources/read",
    "prompt": "prompts/get",
    "complete": "completion/complete",
}


def policies(*specs: Mapping[str, Any]) -> tuple[ToolPolicy, ...]:
    """Reads policies as the router does.

    Args:
        specs: each an entry of `policies`.

    Raises:
        ConfigError: with every mistake that needs no compiler.
    """
    return build({"servers": {"any": {"command": "any"}}, "policies": list(specs)}).policies


def engine(*specs: Mapping[str, Any]) -> Engine:
    """Compiles policies; see `policies`.

    Raises:
        ConfigError: with every mistake.
    """
    return Engine.of(policies(*specs))


def call(
    *,
    server: str = "web",
    args: Mapping[str, Any] | None = None,
    annotations: Mapping[str, Any] | None = None,
    scopes: Sequence[str] = (),
    time: str = "2026-05-01T12:00:00Z",
    **more: Any,
) -> GovernedCall:
    """Makes a call.

    Args:
        server: the server's name.
        args: its arguments.
        annotations: those of the tool.
        scopes: those of the agent's token.
        time: when it came (RFC 3339).
        more: one of `tool`, `resource` and `prompt` with its name, or `complete` with what is to
            be completed; and `id`, `agent`, `client`, `subject` as `GovernedCall` has them.
    """
    [kind] = set(more) & set(_METHODS)
    named = more.pop(kind)
    arguments = dict(args or {})
    params: dict[str, Any] = {"name": named, "arguments": arguments}
    if kind == "resource":
        params = {"uri": named}
    elif kind == "complete":
        params = {"ref": named, "argument": {"name": "x", "value": ""}}
        named = named.get("name") or named.get("uri")
    return GovernedCall(
        **{"id": "1", "agent": "agent-1", **more},
        server=server,
        method=_METHODS[kind],
        name=named,
        arguments=arguments,
        params=msgspec.json.encode(params),
        annotations=annotations or {},
        scopes=tuple(scopes),
        time=datetime.fromisoformat(time).timestamp(),
    )


def said(decision: Decision | None) -> str:
    """A decision as `ruling rule code`; the code only if it is a denial of an unusual kind."""
    if decision is None:
        return "nothing"
    code = decision.code if decision.ruling is Ruling.DENY and decision.code != "denied" else ""
    return f"{decision.ruling} {decision.rule} {code}".rstrip()
