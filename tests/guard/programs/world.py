"""Servers for whoever wants to reach them: `world.py TCP-PORTS UDP-PORTS ADDRESS...`.

Ports are numbers with commas between. Over TCP, at any address, whoever connects is greeted; over
UDP, at the addresses given, everything is answered. Prints "ended" and how many bytes came for
each connection that the other side closed.
"""

from __future__ import annotations

import selectors
import socket
import sys

watched = selectors.DefaultSelector()
heard: dict[socket.socket, int] = {}


def listen(address: str, port: int, kind: socket.SocketKind) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(socket.getaddrinfo(address, port, family, kind)[0][4])
    if kind == socket.SOCK_STREAM:
        sock.listen(64)
        watched.register(sock, selectors.EVENT_READ, greet)
    else:
        watched.register(sock, selectors.EVENT_READ, answer)


def greet(sock: socket.socket) -> None:
    connection, _ = sock.accept()
    connection.sendall(b"greetings\n")
    watched.register(connection, selectors.EVENT_READ, hear)


def hear(connection: socket.socket) -> None:
    try:
        data = connection.recv(65536)
    except ConnectionError:
        data = b""
    heard[connection] = heard.get(connection, 0) + len(data)
    if data:
        return
    print("ended", heard.pop(connection), flush=True)
    watched.unregister(connection)
    connection.close()


def answer(sock: socket.socket) -> None:
    data, sender = sock.recvfrom(65536)
    try:
        sock.sendto(b"answer to " + data, sender)
    except OSError as error:
        print("not answered", sender, error, flush=True)


tcp, udp = ([int(port) for port in ports.split(",") if port] for ports in sys.argv[1:3])
for port in tcp:
    listen("0.0.0.0", port, socket.SOCK_STREAM)
    listen("::", port, socket.SOCK_STREAM)
for port in udp:
    for each in sys.argv[3:]:
        listen(each, port, socket.SOCK_DGRAM)
print("ready", flush=True)
while True:
    for key, _ in watched.select():
        key.data(key.fileobj)
