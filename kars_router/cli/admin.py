"""Asking a running router through its admin address.

Owns where that address is found and what is said when nothing answers there.
"""

from __future__ import annotations

import json
import os
from typing import Any

import click
import httpx

from kars_router.config.addresses import parse_listen
from kars_router.config.load import default_path, load
from kars_router.config.schema import Config
from kars_router.errors import ConfigError, UndeterminedError, UserError

_SECONDS = 5.0

admin_option = click.option(
    "--admin",
    metavar="ADDRESS",
    help="The router's admin address; without it that of $KARS_CONFIG or ./kars.yaml, or "
    "127.0.0.1:9090.",
)


def ask(admin: str | None, path: str) -> Any:
    """Fetches a JSON document from a router's admin address. Blocks for at most five seconds.

    Args:
        admin: `HOST:PORT`, `unix:/path` or a URL, or None for the configured address.
        path: the path to fetch.

    Raises:
        UndeterminedError: nothing usable answers there.
        click.UsageError: it is no address.
        UserError: the configuration says that there is no admin address.
    """
    address = admin or _configured()
    url, transport = _place(address)
    try:
        with httpx.Client(trust_env=False, timeout=_SECONDS, transport=transport) as client:
            response = client.get(f"{url}{path}")
            document = json.loads(response.content) if response.is_success else None
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
