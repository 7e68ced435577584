"""The MCP server that agents of the stateless era talk to.

Owns the order of the checks, and the HTTP answer of each request: plain JSON, or an event stream
once something has to be said before the end. Must not know ASGI's messages nor upstream sessions.

Source: MCP 2026-07-28 "Streamable HTTP", "Discovery", "Multi Round-Trip Requests", "Cancellation".
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec
import trio
from attrs import define

from kars_router.errors import AgentError
from kars_router.front.callers import Requester
from kars_router.front.exchange import JSON, STREAM_HEADERS, Exchange
from kars_router.front.identity import Identities, Identity, identity_of
from kars_router.front.operations import Answer, Operations
from kars_router.front.parking import ParkingLot
from kars_router.front.rounds import StatelessCaller, bound_to
from kars_router.front.streams import KEEPALIVE_SECONDS
from kars_router.front.subscriptions import Subscriptions, read_filter
from kars_router.front.view import view_of
from kars_router.session.supervisor import Supervisor
from kars_router.telemetry import Metrics
from kars_router.wire import capabilities, envelope, eras, jsonrpc, raw, rounds, sse
from kars_router.wire.envelope import INPUT_REQUIRED, Envelope, EnvelopeError
from kars_router.wire.jsonrpc import Kind, Message

_CLIENT_NAME: Final = 64
# Errors of our own whose answer has a status of its own; all others have 200.
_STATUS: Final = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.METHOD_NOT_FOUND: 404,
    envelope.HEADER_MISMATCH: 400,
    envelope.MISSING_CAPABILITY: 400,
    envelope.UNSUPPORTED_VERSION: 400,
}


def claims(version: str, body: bytes) -> bool:
    """Whether a POST is one of this era, or at least says so somewhere.

    Args:
        version: its MCP-Protocol-Version header; "" if it has none, or if only the body counts.
        body: its body.
    """
    if eras.is_stateless(version):
        return True
    if b"protocolVersion" not in body and b"\\u" not in body:
        return False
    try:
        return envelope.claims(jsonrpc.parse(body).params, version)
    except jsonrpc.MalformedError:
        return False


class StatelessServer:
    """Handles the requests of agents of the stateless era.

    Args:
        supervisor: the upstream side; says which arguments a tool wants repeated in headers.
        operations: what agents can do.
        metrics: where things are counted.
        identities: who they are.
        lot: the calls that are being made.
        version: the router's version, for `serverInfo`.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        operations: Operations,
        metrics: Metrics,
        *,
        identities: Identities,
        lot: ParkingLot,
        version: str,
    ) -> None:
        self._supervisor = supervisor
        self._operations = operations
        self._identities = identities
        self._lot = lot
        self._metrics = metrics
        self._info = jsonrpc.encode({"name": "kars-router", "version": version})
        self._subscriptions = Subscriptions(operations, metrics, self._info)

    async def post(self, exchange: Exchange, endpoint: str, body: bytes) -> None:
        """Answers a POST.

        Args:
            exchange: the request.
            endpoint: one server's name, or "" for all.
            body: its body.

        Raises:
            AgentError: it holds no request of this era.
            MalformedError: it is no JSON-RPC message.
        """
        message = jsonrpc.parse(body)  # refuses batches, which this era does not have
        if message.kind is Kind.NOTIFICATION:
            # This era has none over HTTP: an agent cancels by closing the connection.
            await exchange.respond(202)
            return
        if message.kind is Kind.RESPONSE:
            text = "this revision has no requests of servers, so there is nothing to respond to"
            raise AgentError(jsonrpc.INVALID_REQUEST, text, status=400)
        try:
            await self._request(exchange, endpoint, message)
        except EnvelopeError as error:
            await _refuse(exchange, message.id, error.status, error.as_json())
        except AgentError as error:
            value = jsonrpc.error_object(error.code, error.message)
            await _refuse(exchange, message.id, _status(error), value)
        except jsonrpc.MalformedError as error:
            # Before anything was done: the envelope is read further than the checks look.
            value = jsonrpc.error_object(jsonrpc.INVALID_PARAMS, str(error))
            await _refuse(exchange, message.id, 400, value)

    def close(self) -> None:
        """Ends open streams and parked calls, each with its own kind of end; call it to drain."""
        self._subscriptions.close()
        self._identities.close_streams()
        self._lot.close()

    async def _request(self, exchange: Exchange, endpoint: str, message: Message) -> None:
        said = envelope.check(message, exchange.scope["headers"])
        if message.method == "tools/call":
            self._check_arguments(exchange, endpoint, message)
        if not self._operations.accepting:
            raise AgentError(jsonrpc.REFUSED, "the router is shutting down", status=503)
        if message.method == "server/discover":
            body = jsonrpc.result(message.id, await self._discover(endpoint))
            await exchange.respond(200, body, (JSON,))
            return
        if message.method == "initialize":
            known = ", ".join(eras.STATELESS_REVISIONS)
            raise AgentError(
                jsonrpc.METHOD_NOT_FOUND, f"{known} has no initialize; send server/discover"
            )
        who = Requester(
            agent=identity_of(exchange.scope, message.params, exchange.principal),
            endpoint=endpoint,
            client=_client_name(said.client_info),
            subject=exchange.principal.subject,
            scopes=exchange.principal.scopes,
        )
        if message.method == "subscriptions/listen":
            wanted = read_filter(message.params)
            identity = self._identities.find(who.agent, said.capabilities)
            await self._subscriptions.serve(
                exchange, message.id, identity=identity, who=who, wanted=wanted
            )
            return
        await self._check_offered(endpoint, message.method)
        call = self._resumed(who, message) or self._started(who, message, said)
        call.attend(said, _token(message.params))
        await _Round(self, exchange, message.id, call).run()

    def _check_arguments(self, exchange: Exchange, endpoint: str, message: Message) -> None:
        params = raw.fields(message.params) or {}
        tool = self._operations.tool(endpoint, raw.text(params.get("name")) or "")
        runtime = None if tool is None else self._supervisor.servers.get(tool.server)
        plan = runtime.catalogue.plans.get(tool.name) if tool is not None and runtime else None
        if plan is None:
            return
        arguments = bytes(params.get("arguments", b""))
        wrong = plan.mismatch(arguments, exchange.scope["headers"])
        if wrong is not None:
            raise EnvelopeError(envelope.HEADER_MISMATCH, wrong)

    async def _check_offered(self, endpoint: str, method: str) -> None:
        # What is not declared does not exist ("Discovery"); tools always do.
        feature = method.partition("/")[0]
        if feature in ("prompts", "resources"):
            offered = await self._operations.capabilities(endpoint)
            if not capabilities.has(offered, feature):
                raise AgentError(jsonrpc.METHOD_NOT_FOUND, f"no server here has {feature}")

    async def _discover(self, endpoint: str) -> bytes:
        result: dict[str, object] = {
            "supportedVersions": eras.STATELESS_REVISIONS,
            "capabilities": msgspec.Raw(await self._operations.capabilities(endpoint)),
        }
        if instructions := self._operations.instructions(endpoint):
            result["instructions"] = instructions
        return self._stamped("server/discover", jsonrpc.encode(result))

    def _resumed(self, who: Requester, message: Message) -> StatelessCaller | None:
        """The parked call that a request goes on with, which has got its answers."""
        if message.method not in rounds.METHODS:
            return None
        params, responses, written = rounds.without_responses(message.params)
        state = raw.text(written)
        if state is None or not self._lot.made(state):
            return None  # a server's own, or none
        call = self._lot.resume(state, bound_to(who, message.method, params))
        call.take(responses)
        return call

    def _started(self, who: Requester, message: Message, said: Envelope) -> StatelessCaller:
        """A new call, on its way."""
        params = envelope.strip(message.params)
        bound = bound_to(who, message.method, params)
        identity = self._identities.find(who.agent, said.capabilities)
        call = StatelessCaller(
            view=view_of(who.endpoint),
            who=who,
            identity=identity,
            method=message.method,
            params=params,
            bound=bound,
            metrics=self._metrics,
        )
        self._lot.start(call, partial(self._perform, identity, call))
        return call

    async def _perform(self, identity: Identity, call: StatelessCaller) -> Answer:
        identity.in_flight += 1
        try:
            return await self._operations.perform(call.who, call.method, call.params, call)
        finally:
            identity.in_flight -= 1
            identity.touched = trio.current_time()

    def _stamped(self, method: str, result: bytes) -> bytes:
        cacheable = method in envelope.CACHEABLE
        return envelope.stamp_result(
            result,
            ttl_ms=0 if cacheable else None,
            cache_scope="private" if cacheable else None,
            server_info=self._info,
        )

    def count(self, difference: int) -> None:
        """Counts answers that are being made or sent."""
        self._operations.unsent += difference

    def park(self, call: StatelessCaller) -> bytes | None:
        """Parks a call that asks; returns the result that says so, or None if it cannot wait."""
        state = self._lot.park(call)
        if state is None:
            return None
        asked = rounds.input_required(call.open_questions(), jsonrpc.encode(state))
        return envelope.stamp_result(asked, INPUT_REQUIRED, server_info=self._info)

    def unpark(self, call: StatelessCaller, number: int) -> bool:
        """See `ParkingLot.unpark`."""
        return self._lot.unpark(call, number)

    def response(self, ident: bytes, call: StatelessCaller) -> tuple[int, bytes]:
        """The HTTP status and the JSON-RPC response for the end of a call."""
        failure, answer = call.failure, call.answer or Answer(withdrawn=True)
        if failure is not None:
            error = jsonrpc.error_object(failure.code, failure.message)
            return _status(failure), jsonrpc.error(ident, error)
        if answer.withdrawn:
            error = jsonrpc.error_object(jsonrpc.INTERNAL_ERROR, "the call was cancelled")
            return 200, jsonrpc.error(ident, error)
        if answer.error is not None:
            error, code = answer.error, jsonrpc.error_code(answer.error)[0]
            if call.lacking and code == jsonrpc.METHOD_NOT_FOUND:
                # The server hands on what it was told: that it cannot ask.
                code, error = envelope.MISSING_CAPABILITY, _missing(call.lacking)
            # The other statuses would say something of this router: a 404 that it has no such
            # method, while it is the server that lacks something.
            status = 400 if code == envelope.MISSING_CAPABILITY else 200
            return status, jsonrpc.error(ident, error)
        result = answer.result or b"{}"
        # What a server of this era asks of the agent is between the two of them.
        if envelope.result_type(result) != INPUT_REQUIRED:
            result = self._stamped(call.method, result)
        return 200, jsonrpc.result(ident, result)


@define(eq=False)
class _Round:
    """One HTTP request that attends to a call: until the call ends or asks, or the agent leaves.

    Attributes:
        settled: whether what it ends with was taken from us.
        parked: the number of the round that the call was parked in; 0 if it was not.
    """

    server: StatelessServer
    exchange: Exchange
    ident: bytes
    call: StatelessCaller
    settled: bool = False
    parked: int = 0

    async def run(self) -> None:
        """Answers the request. Cancellation, as the agent's leaving, cancels the call."""
        self.server.count(+1)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                await self._converse()
                nursery.cancel_scope.cancel()
        finally:
            self.server.count(-1)
            # Who came back in the meantime has got the state, whatever the connection says.
            if not self.settled and (not self.parked or self.server.unpark(self.call, self.parked)):
                self.call.withdraw()

    async def _watch(self, scope: trio.CancelScope) -> None:
        await self.exchange.wait_disconnect()
        if not self.settled:  # servers report the end of an exchange as a disconnect, too
            scope.cancel()

    async def _converse(self) -> None:
        call = self.call
        while True:
            message = call.said()
            if message is not None:
                await self._say(sse.encode(message))
            elif call.over:
                await self._end(*self.server.response(self.ident, call))
                return
            elif call.asks:
                asked = self.server.park(call)
                if asked is not None:
                    self.parked = call.rounds
                    await self._end(200, jsonrpc.result(self.ident, asked))
                    return
                call.refuse("the client cannot be asked any more at the moment")
            else:
                with trio.move_on_after(KEEPALIVE_SECONDS) as quiet:
                    await call.wait()
                if quiet.cancelled_caught:
                    await self._say(sse.KEEPALIVE)

    async def _say(self, chunk: bytes) -> None:
        if not self.exchange.started:
            await self.exchange.start(200, STREAM_HEADERS)
        await self.exchange.write(chunk)

    @property
    def _costly(self) -> bool:
        """Whether an answer that does not arrive has to be taken back."""
        return self.call.answer is not None and bool(self.call.answer.undo)

    async def _end(self, status: int, response: bytes) -> None:
        if self.exchange.started:
            response = sse.encode(response)
        else:
            length = (b"content-length", b"%d" % len(response))
            await self.exchange.start(status, (JSON, length))
        if self.parked or self._costly:
            # The last byte goes by itself: who leaves before that has not got it all. Writing to
            # somebody who has left fails in silence; `_watch` may be about to hear of it.
            await self.exchange.write(response[:-1])
            response = response[-1:]
            await self.exchange.glance()
        self.settled = True
        await self.exchange.write(response)
        await self.exchange.finish()


def _client_name(info: bytes) -> str:
    name = raw.text((raw.fields(info) or {}).get("name"))
    return (name or "")[:_CLIENT_NAME]


def _status(error: AgentError) -> int:
    return _STATUS.get(error.code, 200) if error.status == 200 else error.status


def _missing(capability: str) -> bytes:
    text = f"the server needs {capability}, which the client does not offer"
    data = capabilities.required(capability)
    return EnvelopeError(envelope.MISSING_CAPABILITY, text, data=data).as_json()


def _token(params: bytes) -> bytes:
    meta = raw.fields((raw.fields(params) or {}).get("_meta")) or {}
    return bytes(meta.get("progressToken", b""))


async def _refuse(exchange: Exchange, ident: bytes, status: int, value: bytes) -> None:
    await exchange.respond(status, jsonrpc.error(ident, value), (JSON,))
