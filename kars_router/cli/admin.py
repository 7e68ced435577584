"""Asking a running router through its admin address.

Owns where that address is found and what is said when nothing answers there.
"""

from __future__ import annotations

import json
import os
from typing import Any

import click
import httpx

from kars_router.config.load import default_path, load
from kars_router.config.schema import Config
from kars_router.errors import ConfigError, UndeterminedError, UserError

_SECONDS = 5.0

admin_option = click.option(
    "--admin",
    metavar="HOST:PORT",
    help="The router's admin address; without it that of $KARS_CONFIG or ./kars.yaml, or "
    "127.0.0.1:9090.",
)


def ask(admin: str | None, path: str) -> Any:
    """Fetches a JSON document from a router's admin address. Blocks for at most five seconds.

    Args:
        admin: `HOST:PORT` or a URL, or None for the configured address.
        path: the path to fetch.

    Raises:
        UndeterminedError: nothing usable answers there.
        UserError: the configuration says that there is no admin address.
    """
    address = admin or _configured()
    url = address if address.startswith(("http://", "https://")) else f"http://{address}"
    try:
        with httpx.Client(trust_env=False, timeout=_SECONDS) as client:
            response = client.get(f"{url.rstrip('/')}{path}")
            response.raise_for_status()
            return json.loads(response.content)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UndeterminedError(
            f"no router answers at {address} ({error}); name its admin address with --admin"
        ) from None


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
