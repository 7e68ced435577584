"""`/api/v1/approvals`: the held calls, and deciding on them. Needs the admin token.

Must not know how calls are held.
"""

from __future__ import annotations

from typing import Any, Final

import attrs
import msgspec

from kars_router.errors import StoreError
from kars_router.front.admin_token import TOKEN_FILE, VARIABLE, AdminToken
from kars_router.front.exchange import (
    JSON,
    BodyTooLargeError,
    BodyTooSlowError,
    DisconnectedError,
    Exchange,
)
from kars_router.governance.approvals import Approval
from kars_router.governance.holding import Holder
from kars_router.telemetry import log
from kars_router.wire import jsonrpc

PATH: Final = "/api/v1/approvals"
_LONGEST_BODY: Final = 16 * 1024
_LONGEST_WORD: Final = 256
_LONGEST_COMMENT: Final = 1000


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    decision: str
    by: str = ""
    comment: str = ""


class ApprovalsApi:
    """Lists and decides.

    Args:
        holder: holds the calls.
        token: what a person has to show.
    """

    def __init__(self, holder: Holder, token: AdminToken) -> None:
        self._holder = holder
        self._token = token

    async def __call__(self, exchange: Exchange) -> None:
        """Serves one request to the path or below it."""
        try:
            await self._serve(exchange)
        except StoreError as error:
            log().error("approvals_failed", error=str(error))
            await _fail(exchange, 503, "the router cannot read or keep approvals; see its log")

    async def _serve(self, exchange: Exchange) -> None:
        if not self._token.known:
            text = f"set `state` or {VARIABLE}: without an admin token nobody can decide here"
            await _fail(exchange, 503, text)
        elif not self._token.admits(exchange.header(b"authorization")):
            text = f"show the admin token: the file {TOKEN_FILE} in the state directory holds it"
            await _fail(exchange, 401, text)
        elif exchange.path == PATH and exchange.method in ("GET", "HEAD"):
            everything = b"all=true" in exchange.query.split(b"&")
            found = await (self._holder.all() if everything else self._holder.pending())
            await _send(exchange, 200, [_shown(each, waiting=waiting) for each, waiting in found])
        elif exchange.path == PATH:
            await _fail(exchange, 405, "use GET here, and POST with an approval's id in the path")
        elif exchange.method != "POST":
            await _fail(exchange, 405, "use POST to decide")
        else:
            await self._decide(exchange, exchange.path.removeprefix(f"{PATH}/"))

    async def _decide(self, exchange: Exchange, ident: str) -> None:
        try:
            body = await exchange.body(_LONGEST_BODY)
            said = msgspec.json.decode(body, type=_Request)
        except DisconnectedError:
            return
        except (BodyTooLargeError, BodyTooSlowError, msgspec.MsgspecError):
            said = _Request(decision="")
        if said.decision not in ("approve", "deny"):
            text = 'send {"decision": "approve"} or {"decision": "deny"}, if you like with "by" '
            await _fail(exchange, 400, f'{text}and "comment"')
            return
        try:
            approval, waiting = await self._holder.decide(
                ident,
                approve=said.decision == "approve",
                by=_clean(said.by, _LONGEST_WORD) or "an operator",
                comment=_clean(said.comment, _LONGEST_COMMENT),
            )
        except LookupError:
            await _fail(exchange, 409, "this approval is unknown, decided or expired")
            return
        await _send(exchange, 200, _shown(approval, waiting=waiting))


def _clean(text: str, longest: int) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:longest].strip()


def _shown(approval: Approval, *, waiting: bool) -> dict[str, Any]:
    plain = attrs.asdict(approval)
    del plain["digest"]
    return {**plain, "waiting": waiting}


async def _send(exchange: Exchange, status: int, value: object) -> None:
    headers = [JSON, (b"cache-control", b"no-store")]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD" if exchange.path == PATH else b"POST"))
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="kars-router admin"'))
    await exchange.respond(status, jsonrpc.encode(value), headers)


async def _fail(exchange: Exchange, status: int, text: str) -> None:
    await _send(exchange, status, {"error": text})
