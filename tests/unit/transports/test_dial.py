"""What is connected to, on real sockets: names and addresses are the test's own (`Network`)."""

from __future__ import annotations

import contextlib
import errno
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio
from http_kit import Authority, Peer, build, cancel_at, fetch, ok
from structlog.testing import capture_logs
from trio.testing import MockClock
from unit.transports.network_kit import Network, listening

from kars_router.config.schema import Limits, Server
from kars_router.errors import CallFailed
from kars_router.model import Failure, Phase, Sent
from kars_router.transports import dial as dialling
from kars_router.transports.base import Delivery
from kars_router.transports.client import new_client
from kars_router.transports.connectors import new_connector
from kars_router.transports.dial import dial
from kars_router.transports.guard import AddressRefusedError, Guard
from kars_router.transports.http import TrioTransport
from kars_router.transports.http_streams import open_stream
from kars_router.transports.streamable_http import StreamableHttp

NAME = "mcp.example.com"
URL = f"http://{NAME}/mcp"
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}'


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The machine's own resolver configuration has no say."""
    path = tmp_path / "resolv.conf"
    monkeypatch.setattr(dialling, "_RESOLV_CONF", path)
    dialling._domains_here.cache_clear()
    return path


def in_a_pod(resolv_conf: Path, domain: str) -> None:
    resolv_conf.write_text(f"search a.svc.{domain} svc.{domain} {domain}\n")
    dialling._domains_here.cache_clear()


@contextlib.asynccontextmanager
async def network(
    *answers: list[str], at: tuple[str, ...] = ("8.8.8.8", "1.1.1.1", "10.0.0.1", "127.0.0.1")
) -> AsyncIterator[tuple[Network, list[bytes]]]:
    """A server that answers at these addresses; the second value is what arrived there."""
    arrived: list[bytes] = []

    async def handler(stream: trio.SocketStream) -> None:
        peer = Peer(stream, 1)
        while request := await peer.request():
            arrived.append(request)
            await peer.send(ok())

    async with listening(handler) as port:
        net = Network({NAME: list(answers)}, dict.fromkeys(at, port)).install()
        yield net, arrived


async def test_the_very_address_that_was_looked_up(no_cluster: Path) -> None:
    async with network(["8.8.8.8"]) as (net, arrived), TrioTransport(URL) as transport:
        assert (await fetch(transport, build(url=URL))).status_code == 200
        assert (net.looked_up, net.tried) == ([NAME], ["8.8.8.8"])
        assert f"\r\nhost: {NAME}\r\n".encode() in arrived[0].lower()


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "fe80::1%7"]
)
async def test_nothing_is_tried_where_a_name_may_not_lead(address: str) -> None:
    async with network([address]) as (net, arrived), TrioTransport(URL) as transport:
        with pytest.raises(httpx.ConnectError, match=address) as caught:
            await fetch(transport, build(url=URL))
        assert isinstance(caught.value.__cause__, AddressRefusedError)
        assert (net.tried, arrived) == ([], [])


async def test_rebinding_between_check_and_use() -> None:
    """The second answer would come to whoever looks a name up again after the check."""
    async with network(["8.8.8.8"], ["127.0.0.1"]) as (net, _), TrioTransport(URL) as transport:
        assert (await fetch(transport, build(url=URL))).status_code == 200
        assert (net.looked_up, net.tried) == ([NAME], ["8.8.8.8"])
        assert (await fetch(transport, build(url=URL))).status_code == 200  # kept: no look-up
        assert net.looked_up == [NAME]


async def test_rebinding_between_two_connections() -> None:
    async with network(["8.8.8.8"], ["127.0.0.1"], ["1.1.1.1"]) as (net, arrived):
        for said in ("", "127.0.0.1 is a loopback address", ""):
            async with TrioTransport(URL) as transport:
                if said:
                    with pytest.raises(httpx.ConnectError, match=said):
                        await fetch(transport, build(url=URL))
                else:
                    await fetch(transport, build(url=URL))
        assert net.looked_up == [NAME] * 3
        assert net.tried == ["8.8.8.8", "1.1.1.1"]
        assert len(arrived) == 2


async def test_each_connection_of_one_transport_is_checked() -> None:
    async def endless(stream: trio.SocketStream) -> None:
        await Peer(stream, 1).request()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
        await trio.sleep_forever()

    async with listening(endless) as port:
        net = Network({NAME: [["8.8.8.8"], ["10.0.0.1"]]}, {"8.8.8.8": port}).install()
        async with TrioTransport(URL) as transport:
            held = await transport.handle_async_request(build(url=URL))
            with pytest.raises(httpx.ConnectError, match=r"10\.0\.0\.1"):
                await fetch(transport, build(url=URL))
            await held.aclose()
        assert net.tried == ["8.8.8.8"]


async def test_only_permitted_addresses_are_tried() -> None:
    answer = ["10.0.0.1", "169.254.169.254", "1.1.1.1", "127.0.0.1", "8.8.8.8"]
    async with network(answer, at=("10.0.0.1", "127.0.0.1", "8.8.8.8")) as (net, _):
        with capture_logs() as logs:
            await (await dial(Guard.of(NAME), 80)).aclose()
        assert net.tried == ["1.1.1.1", "8.8.8.8"]
    (line,) = logs
    assert line["event"] == "addresses_refused"
    assert line["addresses"] == ["10.0.0.1", "169.254.169.254", "127.0.0.1"]


@pytest.mark.parametrize(
    ("url", "networks"),
    [
        (URL, ["10.0.0.0/8"]),
        ("http://mcp.example.com./mcp", ["10.0.0.1/32"]),
    ],
)
async def test_networks_that_are_allowed(url: str, networks: list[str]) -> None:
    async with network(["10.0.0.1"]) as (net, _):
        net.names[f"{NAME}."] = net.names[NAME]
        async with TrioTransport(url, allowed_networks=networks) as transport:
            assert (await fetch(transport, build(url=url))).status_code == 200
        assert net.looked_up == [httpx.URL(url).host]  # with its dot, which keeps to that name


async def test_an_address_in_the_url_is_not_looked_up() -> None:
    literals = ("169.254.169.254", "169.254.169.254.", "[fd00::1]", "[FD00:0::1]")
    async with network(at=("169.254.169.254", "fd00::1")) as (net, arrived):
        for url in (f"http://{literal}/mcp" for literal in literals):
            async with TrioTransport(url) as transport:
                assert (await fetch(transport, build(url=url))).status_code == 200
        assert net.looked_up == []
        assert len(arrived) == len(literals)


async def test_the_domain_of_the_cluster(no_cluster: Path) -> None:
    url = "http://db.tools.svc.k8s.example.com/mcp"
    host = httpx.URL(url).host
    async with network(["10.0.0.1"]) as (net, _):
        net.names[host] = net.names[NAME]
        async with TrioTransport(url) as transport:
            with pytest.raises(httpx.ConnectError, match="allowedNetworks"):
                await fetch(transport, build(url=url))
        in_a_pod(no_cluster, "k8s.example.com")
        async with TrioTransport(url) as transport:
            assert (await fetch(transport, build(url=url))).status_code == 200


async def test_an_opener_without_a_guard_has_the_usual_one() -> None:
    async with network(["10.0.0.1"]) as (net, _):
        with pytest.raises(AddressRefusedError):
            await open_stream(NAME, 80, None)
        assert net.tried == []


async def test_tls_is_for_the_name(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    context = authority.server_context(NAME)
    names: list[str | None] = []

    def note(_: object, name: str | None, __: ssl.SSLContext) -> None:
        names.append(name)

    context.sni_callback = note

    async def handler(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        peer = Peer(tls, 1)
        while await peer.request():
            await peer.send(ok())

    async with listening(handler) as port:
        Network({NAME: [["8.8.8.8", "1.1.1.1"]]}, {"1.1.1.1": port}).install()
        url = f"https://{NAME}/"
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            assert (await fetch(transport, build(url=url))).status_code == 200
    assert names == [NAME]


# --- several addresses ---------------------------------------------------------------------------


async def test_families_take_turns() -> None:
    answer = ["2606:4700::1", "2606:4700::2", "8.8.8.8", "1.1.1.1"]
    async with network(answer, at=("1.1.1.1",)) as (net, _):
        before = trio.current_time()
        await (await dial(Guard.of(NAME), 80)).aclose()
        assert trio.current_time() - before < 0.5  # three failed, and none was waited for
        assert net.tried == ["2606:4700::1", "8.8.8.8", "2606:4700::2", "1.1.1.1"]
        assert net.looked_up == [NAME]
        assert net.sockets_open == 0


async def test_an_address_that_is_silent_does_not_hold_up_the_next() -> None:
    async with network(["2606:4700::1", "8.8.8.8"]) as (net, _):
        net.silent.add("2606:4700::1")
        before = trio.current_time()
        stream = await dial(Guard.of(NAME), 80)
        assert trio.current_time() - before < 5
        assert net.tried == ["2606:4700::1", "8.8.8.8"]
        assert net.sockets_open == 1
        await stream.aclose()


async def test_nobody_answers() -> None:
    async with network(["8.8.8.8", "1.1.1.1"], at=()) as (net, _):
        with pytest.raises(OSError, match="none of 2 addresses answers") as caught:
            await dial(Guard.of(NAME), 80)
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        assert net.sockets_open == 0
        async with TrioTransport(URL) as transport:
            with pytest.raises(httpx.ConnectError, match="nobody is at 8"):
                await fetch(transport, build(url=URL))


async def test_a_single_address_that_does_not_answer() -> None:
    async with network(["8.8.8.8"], at=()) as (net, _):
        with pytest.raises(OSError, match="all attempts to connect to 8"):
            await dial(Guard.of(NAME), 80)
        assert net.sockets_open == 0


async def test_a_name_that_leads_nowhere() -> None:
    async with network() as (net, _):
        net.names.clear()
        with pytest.raises(OSError, match="Name or service") as caught:
            await dial(Guard.of(NAME), 80)
        assert not isinstance(caught.value, AddressRefusedError)


async def test_cancelled_anywhere_it_leaves_no_socket() -> None:
    """Whether it was cancelled, or done, before the cancellation came."""
    for checkpoint in range(1, 200):
        async with network(["2606:4700::1", "8.8.8.8", "1.1.1.1"]) as (net, _):
            net.ports["2606:4700::1"] = net.ports["8.8.8.8"]
            streams: list[trio.SocketStream] = []

            async def action(streams: list[trio.SocketStream] = streams) -> None:
                streams.append(await dial(Guard.of(NAME), 80))

            cancelled = await cancel_at(checkpoint, action)
            assert net.sockets_open == len(streams)
            for stream in streams:
                await stream.aclose()
        if not cancelled:
            return
    raise AssertionError("it never came to an end")


class Meeting(Network):
    """Two connections are there at the same moment, and neither can be called off by then.

    Only so long after they began, Trio's tasks for both of them are at the same point.
    """

    async def reach(self, address: str, connect: object) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_until(5)


async def test_two_that_answer_at_once(autojump_clock: MockClock) -> None:
    net = Meeting({NAME: [["8.8.8.8", "1.1.1.1"]]}).install()
    stream = await dial(Guard.of(NAME), 80)
    assert trio.current_time() == pytest.approx(5)
    assert net.tried == ["8.8.8.8", "1.1.1.1"]
    assert net.sockets_open == 1
    await stream.aclose()


# --- what comes of it above ----------------------------------------------------------------------


async def refusal(url: str, **options: object) -> Failure:
    """The failure of a first message, through the connector that the configuration gives."""
    server = Server(url=url, **options)  # type: ignore[arg-type]
    connector = new_connector("web", server, Limits())
    connection = connector.connect(lambda *_: None, None)
    delivery = Delivery()

    async def speak(nursery: trio.Nursery) -> None:
        await connection.open(nursery)
        await connection.send(CALL, method="tools/call", delivery=delivery, ident=b"1")

    try:
        async with trio.open_nursery() as nursery:
            with pytest.raises(CallFailed) as caught:
                await speak(nursery)
            nursery.cancel_scope.cancel()
        await connection.close()
    finally:
        await connector.aclose()
    assert delivery.sent is Sent.NO
    return caught.value.failure


@pytest.mark.parametrize("url", [URL, f"ws://{NAME}/mcp"])
async def test_the_failure_says_it_to_the_operator(url: str) -> None:
    async with network(["169.254.169.254"]) as (net, _):
        failure = await refusal(url)
        assert (failure.code, failure.phase, failure.sent) == (
            "address_refused",
            Phase.CONNECT,
            Sent.NO,
        )
        assert "169.254.169.254" in failure.detail
        assert net.tried == []


@pytest.mark.parametrize("url", [URL, f"ws://{NAME}/mcp"])
async def test_the_configuration_may_allow_a_network(url: str) -> None:
    async with network(["10.0.0.1"], at=()) as (net, _):
        assert (await refusal(url)).code == "address_refused"
        failure = await refusal(url, allowed_networks=("10.0.0.0/8",))
        assert failure.code == "connect"
        assert str(errno.ECONNREFUSED) in failure.detail
        assert net.tried == ["10.0.0.1"]


@pytest.mark.parametrize("status", [b"301", b"302", b"303", b"307", b"308"])
async def test_a_redirect_does_not_lead_elsewhere(status: bytes) -> None:
    arrived: list[bytes] = []

    async def handler(stream: trio.SocketStream) -> None:
        peer = Peer(stream, 1)
        while request := await peer.request():
            arrived.append(request)
            location = b"Location: http://169.254.169.254/latest/meta-data/\r\n"
            await peer.send(ok(status=status + b" Go", headers=location))

    async with listening(handler) as port:
        net = Network({NAME: [["8.8.8.8"]]}, {"8.8.8.8": port, "169.254.169.254": port}).install()
        async with TrioTransport(URL) as transport, new_client(transport) as client:
            connection = StreamableHttp(client, URL, server="s", deliver=lambda *_: None)
            with pytest.raises(CallFailed) as caught:
                await connection.send(CALL, method="ping", delivery=Delivery(), ident=b"1")
        assert (caught.value.failure.code, caught.value.failure.status) == (
            "redirect",
            int(status),
        )
        assert net.tried == ["8.8.8.8"]
        assert len(arrived) == 1


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def proxy(stream: trio.SocketStream) -> None:
        asked.append(await stream.receive_some())

    async with listening(proxy) as port, network(["8.8.8.8"]) as (net, arrived):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY"):
            for variable in (name, name.lower()):
                monkeypatch.setenv(variable, f"http://proxy.example:{port}")
        net.names["proxy.example"] = [["9.9.9.9"]]
        net.ports["9.9.9.9"] = port
        async with TrioTransport(URL) as transport, new_client(transport) as client:
            assert (await client.get(URL)).status_code == 200
        assert len(arrived) == 1
        assert (await refusal(f"ws://{NAME}/mcp")).status == 200
        assert net.looked_up == [NAME, NAME]
        assert asked == []
