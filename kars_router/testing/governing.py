"""What tests of plugins need beside peers: calls to decide on, and the router's own plugin host.

Owns defaults only. Unlike the peers of this kit, it is the router's own code that runs here: what
a test sees of a plugin is what the router would.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kars_router import policy
from kars_router.barriers import GuardedGovernor
from kars_router.hookspecs import Governor
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling
from kars_router.plugins import Plugins

_NAMED_BY: Final = {"resources/read": "uri"}
_ids: Final = itertools.count(1)


def governed_call(
    name: str = "tool", arguments: Mapping[str, Any] | None = None, /, **more: Any
) -> GovernedCall:
    """A call as governors and transformers get it, with a new id.

    Args:
        name: the tool or prompt, or the URI.
        arguments: its arguments.
        more: other attributes of `GovernedCall`. Unless `params` is given, they are made from the
            name, the arguments and `meta`, which becomes `_meta`.

    Raises:
        TypeError: there is no such attribute.
    """
    method = more.setdefault("method", "tools/call")
    meta = more.pop("meta", None)
    if "params" not in more:
        params: dict[str, Any] = {_NAMED_BY.get(method, "name"): name}
        if arguments is not None:
            params["arguments"] = arguments
        if meta is not None:
            params["_meta"] = meta
        more["params"] = msgspec.json.encode(params)
    defaults = {"id": f"call-{next(_ids)}", "agent": "agent", "server": "server"}
    return GovernedCall(name=name, arguments=dict(arguments or {}), **{**defaults, **more})


def call_end(**more: Any) -> CallEnd:
    """How a call ended: allowed, executed and without a result, unless told otherwise.

    Args:
        more: attributes of `CallEnd`; `result` and `error` may be given as values instead of JSON.

    Raises:
        TypeError: there is no such attribute.
    """
    for member in ("result", "error"):
        if member in more and not isinstance(more[member], bytes | None):
            more[member] = msgspec.json.encode(more[member])
    defaults = {"decision": Decision(ruling=Ruling.ALLOW), "fate": Fate.EXECUTED}
    return CallEnd(**{**defaults, **more})


async def decide(governor: Governor, call: GovernedCall, *, seconds: float = 2.0) -> Decision:
    """What the router makes of a governor's opinion.

    Args:
        governor: the governor, the only one there is.
        call: the call.
        seconds: its deadline.

    Returns:
        the decision; an allow if it has no opinion, a deny if it raises or takes too long.
    """
    said = await GuardedGovernor("plugin", governor).before_call(call, seconds=seconds)
    return policy.fold([] if said is None else [said])


def plugin_host(
    plugin: object, *, name: str = "plugin", options: Mapping[str, Any] | None = None
) -> Plugins:
    """Loads a plugin as the router does, without those that are built in or installed.

    Args:
        plugin: what its entry point names: a module, or an object whose methods are the hooks.
        name: the entry point's name.
        options: its `plugins.options.<name>`.

    Returns:
        the host: `entries()` lists the plugin; its other methods call the hooks.

    Raises:
        kars_router.errors.PluginError: a hook has arguments that it does not get, or the plugin
            refuses its options.
    """
    host = Plugins()
    host.register(plugin, name)
    host.configure(name, options or {})
    return host
