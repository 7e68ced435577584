"""What an agent can do with servers, the same for agents of both eras.

Owns which methods there are, the checks that a request passes before it leaves, the limit on
requests in flight, and what the agent is told. Must not know HTTP nor JSON-RPC ids.

Source: MCP 2025-11-25 and 2026-07-28 "Tools", "Prompts", "Resources", "Completion".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec
import trio

from kars_router.errors import AgentError
from kars_router.front import reading, results
from kars_router.front.callers import AgentCaller, Censor, Requester
from kars_router.front.governed import governed, note_refused, perform
from kars_router.front.lists import PROMPTS, RESOURCES, TEMPLATES, Kind, Lists
from kars_router.front.reading import Params
from kars_router.front.tools import ToolView
from kars_router.governance.runner import Governance
from kars_router.model import CallOutcome, Fate, Tool, ToolCall
from kars_router.session.requests import CALL, Request
from kars_router.session.server import ServerRuntime
from kars_router.session.supervisor import Supervisor
from kars_router.wire import capabilities, jsonrpc, raw
from kars_router.wire.params import HeaderPlan

_FIRST_SECONDS: Final = 5.0
# Agents list tools right after start-up and some never again, so the first list waits for
# servers that are just being reached.
_FIRST_LIST_SECONDS: Final = 5.0
_LONGEST_INSTRUCTIONS: Final = 4096

_EVERYTHING: Final = (
    b'{"prompts":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},'
    b'"logging":{},"completions":{}}'
)


Undo = Callable[[], None]


# As `jsonrpc.Message` one of msgspec's: each call makes one, and these take a tenth of the time.
class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a request ended with: a result or an error, or nothing at all if it was cancelled.

    Attributes:
        result: the result as JSON.
        error: the error object as JSON.
        withdrawn: whether the agent has cancelled the request, so that it gets no answer.
        undo: to be called if the answer does not reach the agent.
    """

    result: bytes | None = None
    error: bytes | None = None
    withdrawn: bool = False
    undo: tuple[Undo, ...] = ()


class Operations:
    """What the agents of one router can do.

    Args:
        supervisor: the upstream side.
        governance: decides on calls and records them.
        limit: most requests at once, answers that are not sent yet included.

    Attributes:
        in_flight: requests that have not ended yet.
        unsent: answers to requests that are being made or sent.
        accepting: whether new requests are made.
    """

    def __init__(self, supervisor: Supervisor, governance: Governance, *, limit: int) -> None:
        self.limit = limit
        self._governance = governance
        self.in_flight = 0
        self.unsent = 0
        self.accepting = True
        self._supervisor = supervisor
        self._tools = ToolView(supervisor)
        self._lists = Lists(supervisor)
        self._idle = trio.Event()
        self._methods: dict[str, Callable[[Requester, Params, AgentCaller], Awaitable[Answer]]] = {
            "tools/list": self._list_tools,
            CALL: self._call,
            PROMPTS.method: partial(self._list, PROMPTS),
            RESOURCES.method: partial(self._list, RESOURCES),
            TEMPLATES.method: partial(self._list, TEMPLATES),
            "prompts/get": self._get_prompt,
            "resources/read": self._read,
            "completion/complete": self._complete,
        }

    def perform(
        self, who: Requester, method: str, params: bytes, caller: AgentCaller
    ) -> Awaitable[Answer]:
        """Does what a request asks for, once it is awaited.

        Args:
            who: the agent.
            method: the request's method.
            params: its params as JSON, or empty.
            caller: the agent's side of the request.

        Raises:
            AgentError: the method, or what it is to act on, is unknown; or the params are wrong.

        Cancellation stops the waiting; what is on its way to a server goes on to its end.
        """
        handler = self._methods.get(method)
        if handler is None:
            raise AgentError(jsonrpc.METHOD_NOT_FOUND, f"unknown method: {method[:128]}")
        return handler(who, reading.members(params), caller)

    async def subscribe(self, who: Requester, params: bytes) -> bytes | None:
        """Has the agent told when a resource changes.

        Returns:
            None, or what is wrong, as a JSON-RPC error object.

        Raises:
            AgentError: the params are wrong, or there is no such resource for this agent.
        """
        server, uri = self._resource(who, reading.members(params))
        return await self._supervisor.subscribe_resource(who.agent, server, uri)

    def unsubscribe(self, who: Requester, params: bytes) -> None:
        """Takes that back.

        Raises:
            AgentError: the params are wrong, or there is no such resource for this agent.
        """
        server, uri = self._resource(who, reading.members(params))
        self._supervisor.unsubscribe_resource(who.agent, server, uri)

    async def capabilities(self, endpoint: str) -> bytes:
        """What an endpoint can do, as a JSON object; waits for servers that are being reached.

        A server that was never reached is taken to be able to do everything: an agent asks once
        only, and lists that stay empty do no harm.
        """
        await self._supervisor.wait_tried(_FIRST_LIST_SECONDS, endpoint)
        known = [
            runtime.keeper.capabilities or _EVERYTHING
            for name, runtime in self._supervisor.servers.items()
            if endpoint in ("", name)
        ]
        if not known and endpoint:
            raise AgentError(jsonrpc.INVALID_REQUEST, "this server is not there any more", 404)
        merged = capabilities.merge_servers(known)
        offered = jsonrpc.members(capabilities.single_server(known[0]) if endpoint else merged)
        tools = raw.fields(offered.get("tools")) or {}
        return jsonrpc.encode({**offered, "tools": {**tools, "listChanged": True}})

    def instructions(self, endpoint: str) -> str:
        """The instructions for the model; "" if there are none."""
        servers = self._supervisor.servers
        if endpoint:
            runtime = servers.get(endpoint)
            return runtime.instructions if runtime else ""
        return "\n\n".join(
            f"# {name}\n{runtime.instructions[:_LONGEST_INSTRUCTIONS]}"
            for name, runtime in servers.items()
            if runtime.instructions
        )

    def tool(self, endpoint: str, name: str) -> Tool | None:
        """The tool of a name, if it is known."""
        try:
            found = self._tools.find(endpoint, name)
        except AgentError:
            return None
        return None if isinstance(found, ServerRuntime) else found

    def plan(self, tool: Tool) -> HeaderPlan | None:
        """Which arguments of a tool a stateless-era agent repeats in headers; None if none."""
        runtime = self._supervisor.servers.get(tool.server)
        return runtime.catalogue.plans.get(tool.name) if runtime else None

    def overheard(self, server: str, agent: str) -> Censor | None:
        """See `Governance.overheard`."""
        return self._governance.overheard(server, agent)

    async def drain(self) -> None:
        """Refuses new requests and waits for the ones in flight."""
        self.accepting = False
        self._governance.holder.stop()
        while self.in_flight:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _list_tools(self, who: Requester, params: Params, _: AgentCaller) -> Answer:
        cursor = reading.cursor(params)
        await self._supervisor.wait_tried(_FIRST_LIST_SECONDS, who.endpoint)
        return Answer(result=self._tools.page(who.endpoint, cursor))

    async def _list(
        self, kind: Kind, who: Requester, params: Params, caller: AgentCaller
    ) -> Answer:
        cursor = reading.cursor(params)
        await self._supervisor.wait_tried(_FIRST_LIST_SECONDS, who.endpoint)
        return Answer(result=await self._lists.page(kind, who, cursor, caller.view))

    async def _call(self, who: Requester, params: Params, caller: AgentCaller) -> Answer:
        name = reading.string(params, "name", "tools/call needs the name of a tool")
        if not params.get("arguments", b"{").startswith(b"{"):
            raise AgentError(jsonrpc.INVALID_PARAMS, "arguments must be an object")
        found = self._tools.find(who.endpoint, name)
        if isinstance(found, ServerRuntime):
            await self._reach(found)
            found = self._tools.find(who.endpoint, name)
        server = found.name if isinstance(found, ServerRuntime) else found.server
        refusal = self._refusal(found, caller)
        if refusal is not None or isinstance(found, ServerRuntime):
            refusal = refusal or _unreached(server)
            asked = _request(who, server, CALL, reading.written(params))
            note_refused(self._governance, who, asked, name, outcome=refusal)
            return _tool_answer(server, refusal)
        # Written anew even if the name stays: of a name that is given twice, the server might
        # take the one that was not checked.
        own = reading.written({**params, "name": jsonrpc.encode(found.name)})
        call = ToolCall(
            agent=who.agent, server=server, tool=found.name, params=own, client=who.client
        )
        request = Request(agent=who.agent, server=server, method=CALL, params=own, call=call)
        hints = found.definition.get("annotations")
        annotations = hints if isinstance(hints, dict) else {}
        outcome = await self._make(who, request, found.name, caller, annotations=annotations)
        if outcome.code == "cancelled":
            return Answer(withdrawn=True)
        answer = _tool_answer(server, outcome)
        if answer.result is not None:
            shown = caller.view.result(server, CALL, answer.result)
            if shown is not answer.result:
                answer = Answer(result=shown)
        if outcome.reset is None:
            return answer
        undo = partial(self._supervisor.return_reset, who.agent, server, outcome.reset)
        if answer.result is None or not results.carries_notice(answer.result):
            # An answer of a shape that MCP does not know cannot carry the notice.
            undo()
            return answer
        return Answer(result=answer.result, undo=(undo,))

    async def _get_prompt(self, who: Requester, params: Params, caller: AgentCaller) -> Answer:
        name = reading.string(params, "name", "prompts/get needs the name of a prompt")
        server, own = await self._lists.find_prompt(who, name)
        written = reading.written({**params, "name": jsonrpc.encode(own)})
        return await self._plain(who, _request(who, server, "prompts/get", written), own, caller)

    async def _read(self, who: Requester, params: Params, caller: AgentCaller) -> Answer:
        server, own = self._resource(who, params)
        written = reading.written({**params, "uri": jsonrpc.encode(own)})
        return await self._plain(who, _request(who, server, "resources/read", written), own, caller)

    async def _complete(self, who: Requester, params: Params, caller: AgentCaller) -> Answer:
        wrong = "completion/complete needs a ref to a prompt or to a resource"
        try:
            ref = {k: bytes(v) for k, v in jsonrpc.members(params.get("ref", b"null")).items()}
        except jsonrpc.MalformedError as error:
            raise AgentError(jsonrpc.INVALID_PARAMS, wrong) from error
        reading.check_spelling(ref)
        kind = reading.string(ref, "type", wrong)
        if kind == "ref/prompt":
            server, own = await self._lists.find_prompt(who, reading.string(ref, "name", wrong))
            ref["name"] = jsonrpc.encode(own)
        elif kind == "ref/resource":
            server, own = self._resource(who, ref)
            ref["uri"] = jsonrpc.encode(own)
        else:
            raise AgentError(jsonrpc.INVALID_PARAMS, wrong)
        written = reading.written({**params, "ref": reading.written(ref)})
        request = _request(who, server, "completion/complete", written)
        return await self._plain(who, request, own, caller)

    async def _plain(
        self, who: Requester, request: Request, name: str, caller: AgentCaller
    ) -> Answer:
        runtime = self._supervisor.servers[request.server]
        outcome = self._refusal(runtime if runtime.keeper.capabilities is None else None, caller)
        if outcome is None:
            outcome = await self._make(who, request, name, caller)
        else:
            note_refused(self._governance, who, request, name, outcome=outcome)
        if outcome.code == "cancelled":
            return Answer(withdrawn=True)
        if outcome.result is not None:
            shown = caller.view.result(request.server, request.method, outcome.result)
            return Answer(result=shown)
        return Answer(error=outcome.error or results.failed_request(request.server, outcome))

    async def _make(
        self,
        who: Requester,
        request: Request,
        name: str,
        caller: AgentCaller,
        *,
        annotations: Mapping[str, Any] | None = None,
    ) -> CallOutcome:
        caller.server = request.server
        self.in_flight += 1
        try:
            if not self._governance.active:
                return await self._supervisor.requests.make(request, caller)
            call = governed(who, request, name, annotations or {})
            if call is None:
                text = "The call's arguments cannot be read, so it was not made."
                refusal = _refused("unreadable", text, retryable=False)
                note_refused(self._governance, who, request, name, outcome=refusal)
                return refusal
            return await perform(
                self._governance, call, caller, self._supervisor.requests, request=request
            )
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def _reach(self, runtime: ServerRuntime) -> None:
        # Only the server that is meant is waited for, and only until its tools are known.
        with trio.move_on_after(_FIRST_SECONDS):
            await runtime.tried.wait()
        await runtime.try_now(runtime.settings.timeouts.connect)

    def _refusal(
        self, found: Tool | ServerRuntime | None, caller: AgentCaller
    ) -> CallOutcome | None:
        if not caller.begin():
            return _refused(
                "session_ended",
                "The agent's session has ended, so the call was not made.",
                retryable=False,
            )
        if not self.accepting:
            return _refused("shutting_down", "The router is shutting down; no call was made.")
        if isinstance(found, ServerRuntime):
            return _unreached(found.name)
        if max(self.in_flight + 1, self.unsent) > self.limit:
            return _refused(
                "too_many_calls",
                f"The router has {self.limit} calls in flight, which is its limit, so this one "
                "was not made. Try again when others have ended.",
            )
        return None

    def _resource(self, who: Requester, params: Params) -> tuple[str, str]:
        uri = reading.string(params, "uri", "the uri of a resource is missing")
        server, own = self._lists.find_resource(who, uri)
        return server, own


def _request(who: Requester, server: str, method: str, params: bytes) -> Request:
    return Request(agent=who.agent, server=server, method=method, params=params)


def _tool_answer(server: str, outcome: CallOutcome) -> Answer:
    if outcome.error is not None:
        return Answer(error=outcome.error)
    return Answer(result=results.tool_result(server, outcome))


def _refused(code: str, message: str, *, retryable: bool = True) -> CallOutcome:
    return CallOutcome(fate=Fate.NOT_EXECUTED, code=code, message=message, retryable=retryable)


def _unreached(server: str) -> CallOutcome:
    return _refused(
        "upstream_unavailable",
        f"The server {server} cannot be reached at the moment, so the call was not made. It may "
        "be tried again later.",
    )
