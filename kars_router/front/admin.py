"""The operator's address: health, metrics, live sessions, held calls, the status page.

What changes anything needs the admin token. Must not show ids on the wire, URLs or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from kars_router.front import status_page
from kars_router.front.agents import AgentRegistry
from kars_router.front.approvals_api import PATH as APPROVALS
from kars_router.front.approvals_api import ApprovalsApi
from kars_router.front.exchange import JSON, Exchange, Header, Receive, Scope, Send, accept_lifespan
from kars_router.front.guard import Guard, is_address
from kars_router.front.policy_status import PolicyStatus
from kars_router.session.supervisor import Supervisor
from kars_router.telemetry import METRICS_TYPE, Metrics
from kars_router.wire import jsonrpc

_TEXT: Final[Header] = (b"content-type", b"text/plain; charset=utf-8")


class AdminApp:
    """The ASGI application of the admin address.

    Args:
        supervisor: the upstream side.
        agents: the agent sessions.
        metrics: what `/metrics` shows.
        guard: says who may talk.
        stopping: whether the router is on its way out.
        approvals: serves the held calls.
        policy: what is enforced.
        sick: what is wrong with the record of calls; "" if nothing is.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        agents: AgentRegistry,
        metrics: Metrics,
        *,
        guard: Guard,
        stopping: Callable[[], bool],
        approvals: ApprovalsApi,
        policy: PolicyStatus,
        sick: Callable[[], str],
    ) -> None:
        self._supervisor = supervisor
        self._agents = agents
        self._metrics = metrics
        self._guard = guard
        self._stopping = stopping
        self._approvals = approvals
        self._policy = policy
        self._sick = sick
        self._routes: dict[str, Callable[[Exchange], Any]] = {
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._show_metrics,
            "/api/v1/servers": self._servers,
            "/api/v1/sessions": self._sessions,
            "/api/v1/policy-status": self._policy_status,
            "/": status_page.show,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request, or follows the server's lifespan."""
        if scope["type"] == "lifespan":
            await accept_lifespan(receive, send)
            return
        if scope["type"] != "http":
            return  # hypercorn then refuses the web socket
        exchange = Exchange(scope, receive, send)
        # Addresses pass as Host: scrapes use them, and no page can make one its own. Health says
        # nothing worth protecting, and probes may come with any name.
        host, origin = exchange.header(b"host"), exchange.header(b"origin")
        if is_address(host) or exchange.path in ("/healthz", "/readyz"):
            if host and origin.lower() in (f"http://{host}", f"https://{host}"):
                origin = ""  # a page of this very address, such as the status page
            host = "localhost"
        status = self._guard.refuses(host, origin)
        route = self._routes.get(exchange.path)
        if status is not None:
            await exchange.respond(status, b"this Origin or Host is not allowed\n", (_TEXT,))
        elif exchange.path == APPROVALS or exchange.path.startswith(f"{APPROVALS}/"):
            await self._approvals(exchange)
        elif route is None:
            await exchange.respond(404, b"not found\n", (_TEXT,))
        elif exchange.method not in ("GET", "HEAD"):
            await exchange.respond(405, b"use GET\n", (_TEXT, (b"allow", b"GET, HEAD")))
        else:
            await route(exchange)

    async def _health(self, exchange: Exchange) -> None:
        # Alive all the same: a restart would not mend what is wrong with a disk.
        sick = self._sick()
        text = f"the record of calls cannot be written: {sick}\n" if sick else "ok\n"
        await exchange.respond(200, text.encode(), (_TEXT,))

    async def _ready(self, exchange: Exchange) -> None:
        waiting = [n for n, r in self._supervisor.servers.items() if not r.tried.is_set()]
        if self._stopping():
            await exchange.respond(503, b"stopping\n", (_TEXT,))
        elif waiting:
            text = f"starting: {', '.join(waiting)}\n".encode()
            await exchange.respond(503, text, (_TEXT,))
        elif sick := self._sick():
            text = f"the record of calls cannot be written: {sick}\n".encode()
            await exchange.respond(503, text, (_TEXT,))
        else:
            await exchange.respond(200, b"ok\n", (_TEXT,))

    async def _policy_status(self, exchange: Exchange) -> None:
        await exchange.respond(200, jsonrpc.encode(self._policy.document()), (JSON,))

    async def _show_metrics(self, exchange: Exchange) -> None:
        kind: Header = (b"content-type", METRICS_TYPE.encode())
        await exchange.respond(200, self._metrics.render(), (kind,))

    async def _servers(self, exchange: Exchange) -> None:
        listed = [
            {
                "name": name,
                "state": runtime.state,
                "error": runtime.error,
                "tools": len(runtime.catalogue.tools),
                "hidden": runtime.catalogue.hidden,
                "withheld": [{"tool": t, "reason": r} for t, r in runtime.withheld.items()],
                "sessionScope": runtime.settings.session_scope.value,
            }
            for name, runtime in self._supervisor.servers.items()
        ]
        await exchange.respond(200, jsonrpc.encode(listed), (JSON,))

    async def _sessions(self, exchange: Exchange) -> None:
        now = trio.current_time()
        agents = [
            {
                "agent": session.agent,
                "client": session.ticket.client,
                "revision": session.ticket.revision,
                "endpoint": session.ticket.endpoint or None,
                "streams": len(session.streams),
                "inFlight": session.in_flight,
                "idleSeconds": round(now - session.touched, 3),
            }
            for session in self._agents.all()
        ]
        upstream = [
            {_camel(k): v for k, v in attrs.asdict(status).items()}
            for status in self._supervisor.sessions()
        ]
        body = jsonrpc.encode({"agents": agents, "upstream": upstream})
        await exchange.respond(200, body, (JSON,))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
