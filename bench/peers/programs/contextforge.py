"""ContextForge's gateway with one registered server. Runs in an environment that has it.

    python contextforge.py --url URL

Prints `ready PORT` as soon as the server's tools are listed. As it comes, in one process, with a
new SQLite database; but without its limit of calls, which a load is over at once, and for agents
that need not prove who they are, as everything else is measured.
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 60.0
USER = "admin@example.com"


def ask(port: int, token: str, path: str, body: object = None) -> object:
    """What the gateway's own interface says; with a body, what it says to that."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return json.load(response)


def register(url: str, port: int, token: str) -> None:
    """Waits for the gateway, and tells it of the server."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            ask(port, token, "/health")
            break
        except (OSError, urllib.error.URLError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    ask(port, token, "/gateways", {"name": "bench", "url": url, "transport": "STREAMABLEHTTP"})
    while not ask(port, token, "/tools"):
        time.sleep(0.1)


def main() -> None:
    """Becomes the gateway; a process that it leaves behind registers the server and ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="of the upstream")
    parser.add_argument("--port", help="not used: it chooses one")
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    place = Path(tempfile.mkdtemp(prefix="bench-contextforge-"))
    secret = secrets.token_urlsafe(48)
    os.environ |= {
        "AUTH_ENCRYPTION_SECRET": secrets.token_urlsafe(48),
        "AUTH_REQUIRED": "false",
        "CACHE_TYPE": "memory",
        "DATABASE_URL": f"sqlite:///{place}/gateway.db",
        "GATEWAY_TOOL_NAME_SEPARATOR": "_",
        "JWT_SECRET_KEY": secret,
        "LOG_LEVEL": "ERROR",
        "MCP_REQUIRE_AUTH": "false",
        "PLATFORM_ADMIN_EMAIL": USER,
        "RATE_LIMITING_ENABLED": "false",
        "SSRF_ALLOW_LOCALHOST": "true",
        "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
    }
    os.chdir(place)
    # Made by a process of its own, so that what becomes the gateway has loaded nothing of it.
    python = [sys.executable, "-m", "mcpgateway.utils.create_jwt_token"]
    made = subprocess.run(
        [*python, "--username", USER, "--admin", "--exp", "60", "--secret", secret],
        check=True,
        capture_output=True,
        text=True,
    )
    token = made.stdout.split()[-1]
    if (child := os.fork()) == 0:
        if os.fork() == 0:  # a grandchild is nobody's zombie
            register(asked.url, port, token)
            print("ready", port, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    os.dup2(2, 1)
    gateway = str(Path(sys.executable).with_name("mcpgateway"))
    options = ["--log-level", "error", "--no-access-log"]
    os.execv(gateway, [gateway, "--host", "127.0.0.1", "--port", str(port), *options])


if __name__ == "__main__":
    main()
