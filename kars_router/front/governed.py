"""A request of an agent as governance sees it, and the way from there to its server.

Must not know HTTP nor what is decided.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from kars_router.front.callers import AgentCaller, Requester
from kars_router.governance.runner import BeforeSend, Governance, new_call_id
from kars_router.model import CallOutcome, Fate, GovernedCall
from kars_router.session.requests import Request, Requests
from kars_router.session.server import ServerRuntime
from kars_router.wire import jsonrpc
from kars_router.wire.duplicates import ambiguous

_COMPLETE: Final = "completion/complete"


def governed(
    who: Requester, request: Request, name: str, annotations: Mapping[str, Any]
) -> GovernedCall | None:
    """A request as governors see it; None if its arguments cannot be read, or in two ways.

    Args:
        who: who makes it.
        request: the request, under the server's own names.
        name: the tool or prompt under the server's own name, or the URI.
        annotations: the hints of the tool's definition.
    """
    member = "argument" if request.method == _COMPLETE else "arguments"
    try:
        written = jsonrpc.members(request.params).get(member)
        arguments = None if written is None else jsonrpc.decode(bytes(written))
    except jsonrpc.MalformedError:
        return None
    if not isinstance(arguments, dict | None):
        return None
    if written is not None and ambiguous(bytes(written), arguments):
        return None  # the server might take the value that was not judged
    return _described(who, request, name, annotations=annotations, arguments=arguments or {})


def note_refused(
    governance: Governance, who: Requester, request: Request, name: str, *, outcome: CallOutcome
) -> None:
    """Has the record say that a request was refused before anybody decided on it.

    Args:
        governance: keeps the record.
        who: who makes it.
        request: the request.
        name: what it is to act on, as far as that is known.
        outcome: what the agent is told.
    """
    if governance.recorder is not None:
        call = _described(who, request, name, annotations={}, arguments={})
        governance.note_refused(call, outcome)


def _described(
    who: Requester,
    request: Request,
    name: str,
    *,
    annotations: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> GovernedCall:
    return GovernedCall(
        id=new_call_id(),
        agent=who.agent,
        client=who.client,
        subject=who.subject,
        scopes=who.scopes,
        server=request.server,
        method=request.method,
        name=name,
        arguments=arguments,
        params=request.params,
        annotations=annotations,
        time=time.time(),
    )


async def perform(
    governance: Governance,
    call: GovernedCall,
    caller: AgentCaller,
    requests: Requests,
    *,
    request: Request,
) -> CallOutcome:
    """Brings a request to its end, as governance allows.

    Args:
        governance: decides on it.
        call: the request, as governors see it.
        caller: the agent's side of it.
        requests: makes it.
        request: the request, as it is made if nothing is changed about it.

    Cancellation: see `Governance.perform`.
    """
    caller.censor = governance.censor(call)

    async def make(params: bytes, before_send: BeforeSend) -> CallOutcome:
        if caller.withdrawn:
            text = "The call was cancelled before it was made."
            return CallOutcome(fate=Fate.NOT_EXECUTED, code="cancelled", message=text)
        if not _is_admitted(requests.servers.get(request.server), call):
            # It may have been withheld while the call waited for a person.
            text = "What this call is for is not available any more, so it was not made."
            return CallOutcome(fate=Fate.NOT_EXECUTED, code="tool_gone", message=text)
        tool = request.call
        if tool is not None and params is not request.params:
            tool = replace(tool, params=params)
        sent = Request(
            agent=request.agent,
            server=request.server,
            method=request.method,
            params=params,
            call=tool,
            before_send=before_send,
            censor=caller.censor,
        )
        return await requests.make(sent, caller)

    return await governance.perform(call, caller, make)


def _is_admitted(runtime: ServerRuntime | None, call: GovernedCall) -> bool:
    """Whether the agent may still see what a call is for."""
    if runtime is None:
        return False
    match call.method:
        case "tools/call":
            return call.name in runtime.catalogue.tools
        case "prompts/get":
            return runtime.admits_prompt(call.name)
        case "resources/read":
            return runtime.admits_resource(call.name)
        case _:
            return True
