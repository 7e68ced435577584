"""Asking a running router through its admin address.

Owns where that address is found and what is said when nothing answers there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import click
import httpx

from kars_router.config.addresses import parse_listen
from kars_router.config.load import default_path, load
from kars_router.config.schema import Config
from kars_router.errors import ConfigError, UndeterminedError, UserError

_SECONDS = 5.0
# As in kars_router.front.admin_token, which brings a web server along.
VARIABLE: Final = "KARS_ADMIN_TOKEN"
TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file name

admin_option = click.option(
    "--admin",
    metavar="ADDRESS",
    help="The router's admin address; without it that of $KARS_CONFIG or ./kars.yaml, or "
    "127.0.0.1:9090.",
)


def ask(
    admin: str | None, path: str, *, token: str = "", body: dict[str, Any] | None = None
) -> Any:
    """Fetches a JSON document from a router's admin address. Blocks for at most five seconds.

    Args:
        admin: `HOST:PORT`, `unix:/path` or a URL, or None for the configured address.
        path: the path to fetch.
        token: the admin token, where the path needs it.
        body: what to post there; None to get.

    Raises:
        UndeterminedError: nothing usable answers there.
        click.UsageError: it is no address.
        UserError: the configuration says that there is no admin address, the token is refused, or
            what was posted is.
    """
    address = admin or _configured()
    url, transport = _place(address)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(trust_env=False, timeout=_SECONDS, transport=transport) as client:
            method = "GET" if body is None else "POST"
            response = client.request(method, f"{url}{path}", headers=headers, json=body)
            document = json.loads(response.content) if response.is_success else None
            if response.status_code in (401, 409, 503) and path.startswith("/api/"):
                raise UserError(_refusal(response))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UndeterminedError(
            f"no router answers at {address} ({error}); name its admin address with --admin"
        ) from None
    if document is None:
        raise UndeterminedError(
            f"{address} is not a router's admin address: it answered {response.status_code}; name "
            "the one that the configuration calls admin with --admin"
        )
    return document


def admin_token(file: Path | None) -> str:
    """The admin token of the router on this machine, as `kars run` finds or makes it.

    Args:
        file: the file that holds it, or None for `$KARS_ADMIN_TOKEN`, else the one in the
            configured state directory.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if file is None and given:
        return given
    place = file or _state_directory() / TOKEN_FILE
    try:
        token = place.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the admin token {place} cannot be read: {getattr(error, 'strerror', None) or error}; "
            f"name the file with --token-file, or set {VARIABLE}"
        ) from None
    if not token or not token.isprintable():
        raise UserError(f"the file {place} holds no admin token")
    return token


def _state_directory() -> Path:
    path = default_path(os.environ)
    try:
        configured = load(path, environ=os.environ).state if path else None
    except ConfigError:
        configured = None
    return configured or Path(os.environ.get("KARS_STATE_DIR") or Path.home() / ".kars")


def _refusal(response: httpx.Response) -> str:
    try:
        text = json.loads(response.content)["error"]
    except (ValueError, KeyError, TypeError):
        text = ""
    more = ""
    if response.status_code == 401:
        more = f"; name that file with --token-file, or set {VARIABLE} to what it holds"
    return f"the router refuses: {text or response.status_code}{more}"


def _place(address: str) -> tuple[str, httpx.BaseTransport | None]:
    if address.startswith(("http://", "https://")):
        return address.rstrip("/"), None
    try:
        place = parse_listen(address)
    except ValueError as error:
        raise click.UsageError(f"--admin: {error}") from None
    if place.path:
        return "http://localhost", httpx.HTTPTransport(uds=place.path)
    return f"http://{place}", None


def _configured() -> str:
    path = default_path(os.environ)
    default = str(Config().admin)
    if path is None:
        return default
    try:
        address = load(path, environ=os.environ).admin
    except ConfigError:
        return default  # `kars check` is the place to hear about that file
    if address is None:
        raise UserError(f"{path} turns the admin address off; there is nothing to ask")
    return str(address)
