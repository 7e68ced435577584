"""A child process that does as its test says: what arrives at the one end leaves at the other.

python stdio_relay.py PORT [stubborn] [lazy]

From stdin to a connection to 127.0.0.1:PORT, and from there to stdout. The end of stdin ends it,
and so does the end of the connection, with status 3. A stubborn one minds neither the end of
stdin nor SIGTERM. A lazy one reads nothing before the first byte has come from the connection.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

stubborn = "stubborn" in sys.argv
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
wire = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
if "lazy" in sys.argv:
    wire.recv(1)


def forward() -> None:
    while data := os.read(0, 65536):
        wire.sendall(data)
    if not stubborn:
        os._exit(0)


threading.Thread(target=forward, daemon=True).start()
while data := wire.recv(65536):
    while data:
        data = data[os.write(1, data) :]
os._exit(3)
