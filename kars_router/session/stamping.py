"""What each message to a server of the stateless era says of this hop: ids, envelope, headers.

Must not know what becomes of a message.

Source: MCP 2026-07-28 "Overview / _meta", "Streamable HTTP / Standard Request Headers",
"Custom Headers from Tool Parameters".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from kars_router.session.caller import Caller
from kars_router.transports.base import Connection
from kars_router.wire import capabilities, envelope, headers, jsonrpc, raw
from kars_router.wire.params import HeaderPlan


class Stamps:
    """The stamps of one session.

    Args:
        connection: the session's; says which revision is spoken.
        version: the router's version.
        plans: which arguments of a tool, by its own name, are repeated in headers; None if none.
    """

    def __init__(
        self, connection: Connection, version: str, plans: Callable[[str], HeaderPlan | None]
    ) -> None:
        self._connection = connection
        self._client = jsonrpc.encode({"name": "kars-router", "version": version})
        self._plans = plans
        self._ids = itertools.count()

    def next_ident(self) -> bytes:
        """An id that no other request of the session has, as JSON."""
        return b"%d" % next(self._ids)

    def stamp(self, params: bytes, caller: Caller | None = None) -> bytes:
        """The params of a request with its envelope, instead of the one that it had.

        Args:
            params: a JSON object, or empty.
            caller: on whose behalf it is made; None if it is the router's own.

        Raises:
            MalformedError: the params are no JSON object.
        """
        return envelope.stamp(
            params,
            version=self._connection.revision or "",
            capabilities=capabilities.offered_upstream(caller.capabilities) if caller else b"{}",
            client_info=self._client,
            log_level=caller.log_level if caller else "",
        )

    def headers(self, method: str, params: bytes) -> dict[str, str]:
        """The headers that repeat parts of a request.

        Args:
            method: its method.
            params: its params under the server's own names, as JSON.
        """
        found = {headers.METHOD_HEADER: method}
        fields = raw.fields(params) or {} if method in envelope.NAMED else {}
        name = raw.text(fields.get(envelope.NAMED.get(method, "")))
        if name is None:
            return found
        found[headers.NAME_HEADER] = headers.encode_value(name)
        if method == "tools/call" and (plan := self._plans(name)) is not None:
            found |= plan.headers(bytes(fields.get("arguments", b"")))
        return found
