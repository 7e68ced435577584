"""Addresses: where the router listens, which URLs it calls, whom it answers.

Pure: nothing is resolved or opened. Each parser raises ValueError with the rest of a sentence
that starts with the path.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

import idna
from attrs import frozen

_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
_BRACKETS = re.compile(r"\[[^\[\]]*\](?::[0-9]*)?\Z")
_LONGEST_SOCKET_PATH = 107  # bytes: sun_path in unix(7) without its closing zero
_LONGEST_URL = 8192
_LISTEN_FORMS = "must be HOST:PORT, [IPV6]:PORT or unix:/path"
URL_SCHEMES = ("http", "https", "ws", "wss")


@frozen
class Address:
    """A place to listen on: a host and a port, or a socket in the file system.

    Attributes:
        host: a name or an IP address, IPv6 without brackets; empty for a socket path.
        port: 0 to 65535, where 0 lets the system choose; None for a socket path.
        path: an absolute socket path; empty for a host.
    """

    host: str = ""
    port: int | None = None
    path: str = ""

    def __str__(self) -> str:
        """As in the configuration, which is also the form that hypercorn binds to."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Address:
    """Reads `HOST:PORT`, `[IPV6]:PORT` or `unix:/path`.

    Raises:
        ValueError: for anything else, with a sentence.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ValueError("must give an absolute path after unix:")
        if len(path.encode(errors="surrogatepass")) > _LONGEST_SOCKET_PATH:
            raise ValueError(f"must give a path of at most {_LONGEST_SOCKET_PATH} bytes")
        return Address(path=path)
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError(_LISTEN_FORMS)
    port = _parse_port(port_text)
    if host.startswith("[") and host.endswith("]"):
        if not _is_ipv6(host[1:-1]):
            raise ValueError("must hold an IPv6 address between its brackets")
        return Address(host[1:-1], port)
    if not host:
        raise ValueError("must name the host, such as 127.0.0.1, before the port")
    if ":" in host:
        raise ValueError("must have brackets around an IPv6 address, as in [::1]:8443")
    if not _is_host(host):
        raise ValueError(_LISTEN_FORMS)
    return Address(host.lower(), port)


def parse_url(text: str) -> str:
    """Checks the URL of an upstream server.

    Returns:
        The URL as it was given.

    Raises:
        ValueError: with a sentence that never repeats the URL, which may hold a secret.
    """
    if len(text) > _LONGEST_URL:
        raise ValueError(f"must not be longer than {_LONGEST_URL} characters")
    if not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("must not hold spaces, backslashes or control characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # urllib raises for a bad port as well as for bad brackets, without saying which.
        raise ValueError("is not a URL: its host or its port (1 to 65535) is wrong") from None
    if parts.scheme not in URL_SCHEMES or not text.partition(":")[2].startswith("//"):
        raise ValueError("must start with http://, https://, ws:// or wss://")
    if "@" in parts.netloc:
        raise ValueError(
            "must not hold a user or a password; name the token with bearerFromEnv instead"
        )
    if not parts.hostname or not _is_url_host(parts):
        raise ValueError("must name a host after ://")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("must have a port from 1 to 65535 after the last colon")
    if "#" in text:
        raise ValueError("must not hold a fragment (the part after #)")
    return text


def is_secure(url: str) -> bool:
    """Whether nobody on the way can read or change what is said: TLS, or this machine.

    Args:
        url: a valid one.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").removesuffix(".")
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host.rpartition(".")[2] == "localhost"
    return parts.scheme in ("https", "wss") or here


def hide_query(url: str) -> str:
    """The URL for eyes that should see no secret: a query is replaced by three dots."""
    address, mark, _ = url.partition("?")
    return f"{address}{mark}{'...' if mark else ''}"


def parse_host(text: str) -> str:
    """Reads a Host value that the agent side accepts: `name`, `name:port` or `[v6]:port`.

    Returns:
        The value in lower case.

    Raises:
        ValueError: for anything else; wild cards are refused.
    """
    host, colon, port = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, port = text, ""
    elif port:
        _parse_port(port)
    bracketed = host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1])
    if (colon and not port and host != text) or not (bracketed or _is_host(host)):
        raise ValueError("must be a host such as ui.example or ui.example:8443, no wild card")
    return text.lower()


def parse_origin(text: str) -> str:
    """Reads an Origin that the agent side accepts (RFC 6454 section 6.1).

    Returns:
        The origin in lower case.

    Raises:
        ValueError: for anything but `scheme://host[:port]`; wild cards and `null` are refused.
    """
    scheme, mark, host = text.partition("://")
    if not mark or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*\Z", scheme):
        raise ValueError("must be an origin such as https://ui.example, no wild card")
    try:
        parse_host(host)
    except ValueError:
        raise ValueError("must be scheme://host or scheme://host:port and no more") from None
    return text.lower()


def _parse_port(text: str) -> int:
    if not re.match(r"[0-9]{1,5}\Z", text) or int(text) > 65_535:
        raise ValueError("must end in a port from 0 to 65535")
    return int(text)


def _is_host(host: str) -> bool:
    if re.match(r"[0-9.]+\Z", host):  # all digits: an IPv4 address or nothing
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            return False
        return True
    return bool(_HOST.match(host))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_url_host(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    if "[" in parts.netloc:  # urllib passes over what stands beside the brackets
        return bool(_BRACKETS.match(parts.netloc)) and _is_ipv6(host)
    if not host.isascii():
        # As it is looked up later; what is an address afterwards says to nobody that it is one.
        try:
            host = idna.encode(host.lower()).decode("ascii")
        except UnicodeError:
            return False
        if host.removesuffix(".").rpartition(".")[2].isdigit():
            return False
    return _is_host(host.removesuffix("."))  # a dot at the end is a fully qualified name
