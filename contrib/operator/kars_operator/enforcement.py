"""What the routers of sandboxes say that they enforce.

Owns asking them: `/api/v1/policy-status` of each pod, soon after something has changed and now and
then after that. Must not know what they should enforce. What a router says is not trusted beyond
its digests: an answer is bounded, and nothing of it but those is kept.

The operator says that something is enforced only when the process that enforces it has said so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import httpx
import msgspec
import trio
from attrs import define, field, frozen

from kars_operator.store import Key, Object
from kars_router.transports.answers import open_chunks
from kars_router.transports.client import new_client
from kars_router.transports.http import TrioTransport

PATH: Final = "/api/v1/policy-status"
_PATIENCE_SECONDS: Final = 5.0
_LONGEST_ANSWER: Final = 1 << 20
_LONGEST_PROBLEM: Final = 300
_ADMIN: Final = "admin"


@frozen(kw_only=True)
class Heard:
    """What one router said, or why nothing was heard of it.

    Attributes:
        pod: its name.
        digest: of everything that it enforces; "" if that is not known.
        entries: the digest of each thing, by kind and name.
        refused: what is wrong with a newer configuration that it did not take over.
        problem: why it could not be asked; "" if it could.
        pending: whether its pod has no address yet, so that there was nobody to ask, or has not
            been asked yet.
    """

    pod: str
    digest: str = ""
    entries: frozenset[tuple[str, str, str]] = frozenset()
    refused: str = ""
    problem: str = ""
    pending: bool = False


@define(eq=False)
class Routers:
    """The routers of all sandboxes.

    Args:
        pods: gives the pods of a sandbox.
        told: told when something else was heard of a sandbox than before.
        get: fetches an answer.
        most: requests at once.
    """

    pods: Callable[[Key], Iterable[Object]]
    told: Callable[[Key], None]
    get: Callable[[str], Awaitable[bytes]] = field(factory=lambda: get)
    most: int = 16
    _heard: dict[Key, tuple[Heard, ...]] = field(factory=dict, init=False)
    _places: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = trio.CapacityLimiter(self.most)

    def heard(self, sandbox: Key) -> tuple[Heard, ...]:
        """What the routers of a sandbox said last; nothing if it has none that is running.

        What was heard of a pod that is gone counts for nothing, and a new one has said nothing.
        """
        said = {each.pod: each for each in self._heard.get(sandbox, ())}
        if not said:
            return ()
        names = (each["metadata"]["name"] for each in self._running(sandbox))
        return tuple(said.get(name) or _not_asked(name) for name in names)

    def forget(self, sandbox: Key) -> None:
        """There is no such sandbox any more."""
        self._heard.pop(sandbox, None)

    async def ask(self, sandbox: Key) -> None:
        """Asks every running pod of a sandbox what its router enforces."""
        found = []
        for pod in self._running(sandbox):
            async with self._places:
                found.append(await self._ask(pod))
        before, now = self._heard.pop(sandbox, ()), tuple(found)
        if now:
            self._heard[sandbox] = now
        if before != now:
            self.told(sandbox)

    def _running(self, sandbox: Key) -> list[Object]:
        ended = {"Succeeded", "Failed"}
        return [each for each in self.pods(sandbox) if each["status"]["phase"] not in ended]

    async def _ask(self, pod: Object) -> Heard:
        name = pod["metadata"]["name"]
        url = _url(pod)
        if url is None:
            return Heard(pod=name, problem="it has no address yet", pending=True)
        try:
            with trio.fail_after(_PATIENCE_SECONDS):
                return read(name, await self.get(url))
        except (httpx.HTTPError, trio.TooSlowError, ValueError) as error:
            said = str(error) or f"no answer within {_PATIENCE_SECONDS:g} s"
            return Heard(pod=name, problem=said[:_LONGEST_PROBLEM])


async def get(url: str) -> bytes:
    """Fetches a router's answer.

    A connection of its own: the next question is a minute away, and pods come and go.

    Raises:
        httpx.HTTPError: there is none.
        ValueError: it is too long, or a refusal.
    """
    transport = TrioTransport(url, max_connections=1)
    try:
        async with new_client(transport) as client:
            response = await client.send(client.build_request("GET", url), stream=True)
            async with open_chunks(response) as chunks:
                body = bytearray()
                async for chunk in chunks:
                    body += chunk
                    if len(body) > _LONGEST_ANSWER:
                        raise ValueError("its answer is too long")
            if response.status_code != 200:
                raise ValueError(f"it answers with status {response.status_code}")
            return bytes(body)
    finally:
        with trio.move_on_after(1, shield=True):
            await transport.aclose()


def read(pod: str, body: bytes) -> Heard:
    """What the answer of a router says.

    Args:
        pod: its pod's name.
        body: the answer.

    Raises:
        ValueError: it is none.
    """
    try:
        said = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError as error:
        raise ValueError("its answer is none of a router") from error
    problems = said.refused.problems if said.refused else []
    return Heard(
        pod=pod,
        digest=said.digest,
        entries=frozenset((each.kind, each.name, each.digest) for each in said.entries),
        refused="; ".join(problems)[:_LONGEST_PROBLEM],
    )


class _Entry(msgspec.Struct):
    kind: str
    name: str
    digest: str


class _Refused(msgspec.Struct):
    problems: list[str]


class _Status(msgspec.Struct):
    digest: str
    entries: list[_Entry]
    refused: _Refused | None = None


def _not_asked(pod: str) -> Heard:
    return Heard(pod=pod, problem="it has not been asked yet", pending=True)


def _url(pod: Object) -> str | None:
    address = pod["status"].get("podIP")
    ports: list[dict[str, Any]] = pod["spec"]["ports"]
    port = next((each["containerPort"] for each in ports if each.get("name") == _ADMIN), None)
    if not address or port is None:
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}{PATH}"
