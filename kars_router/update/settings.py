"""What an installer is set to: its indexes, the way to them, and secrets for them.

Pure values, and how URLs are taken apart. Must not know whose settings they are. What may be a
secret is kept out of `repr`, and of messages.
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from kars_router.errors import UndeterminedError

# What can stand behind the scheme without meaning anything but itself.
_FORBIDDEN: Final = frozenset(" \t\r\n\\\"'<>^`{|}")

Login = tuple[str, str]


@frozen
class Index:
    """A package index.

    Attributes:
        url: where its Simple API is; http or https, without user, query or fragment.
        login: user and password, or None.
    """

    url: str = field(repr=False)
    login: Login | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """What may be told of it: a path may hold a token too."""
        return urlsplit(self.url).netloc


@frozen
class Wire:
    """How to get to servers.

    Attributes:
        trusted: hosts, also as `host:port`, whose certificates are not looked at and that may be
            spoken to without TLS.
        plain: whether that goes for any host where TLS is not asked for.
        ca_file: certificate authorities (PEM, or a directory of them) to trust instead of the
            system's; empty for those.
        client_cert: a certificate with its key (PEM) to show; empty for none.
        proxy: for all servers, may hold a password; empty for what the environment says.
    """

    trusted: frozenset[str] = frozenset()
    plain: bool = False
    ca_file: str = ""
    client_cert: str = ""
    proxy: str = field(default="", repr=False)


@frozen
class Settings:
    """What is asked for releases.

    Attributes:
        indexes: in the order in which they are asked.
        wants_default: whether the index that the installer brings along is asked, as the last one.
        first_only: whether the first index that knows a project is the only one that counts.
        wire: the way to them.
    """

    indexes: tuple[Index, ...] = ()
    wants_default: bool = False
    first_only: bool = False
    wire: Wire = Wire()


def index_from(text: str) -> Index:
    """Takes the URL of an index apart.

    Raises:
        UndeterminedError: it is none that can be asked. The message does not repeat it, because
            what cannot be taken apart may hold a password anywhere.
    """
    text = text.strip()
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UndeterminedError("the configured index has a URL that cannot be read") from None
    if parts.scheme not in {"http", "https"}:
        raise UndeterminedError("the configured index is not at an http or https URL")
    if (
        not parts.hostname
        or parts.query
        or parts.fragment
        or not text.isascii()
        or not text.isprintable()
        or _FORBIDDEN & set(text)
    ):
        raise UndeterminedError("the configured index has a URL that cannot be read")
    login = None
    if "@" in parts.netloc:
        login = (unquote(parts.username or ""), unquote(parts.password or ""))
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    return Index(f"{parts.scheme}://{place}{parts.path or '/'}", login)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http or https URL: who gets what is sent there.

    Raises:
        ValueError: it has none, or another scheme.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"not an http or https URL: {parts.scheme}")
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_trusted(url: str, trusted: frozenset[str]) -> bool:
    """Whether the user has declared a server to be trusted whatever its certificate says."""
    _, host, port = origin(url)
    return bool(trusted & {host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}"})
