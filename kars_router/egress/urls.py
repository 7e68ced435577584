"""Reading the URL of a server: is it for TLS, what is its host, what its port.

Owns the normal form of hosts. Must not know where a host is.

Sources: RFC 3986 section 3.2; UTS 46 and RFC 5891 for names in other scripts.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import idna
from attrs import frozen

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LONGEST_URL: Final = 8192
_LONGEST_HOST: Final = 1024  # before IDNA, which writes one character as several
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_PORT: Final = re.compile(r"[0-9]{1,5}\Z")
_NUMBER: Final = re.compile(r"([0-9]+|0x[0-9a-f]*)\Z")


class InvalidUrlError(ValueError):
    """A URL that leads nowhere; the text is a sentence that holds no secret."""


@frozen
class Target:
    """What a URL leads to.

    Attributes:
        tls: whether the connection is one over TLS.
        host: in lower case, without dot at the end, as A-label, without brackets.
        port: 1 to 65535.
        address: the host, if it is an address and no name.
        absolute: whether the host ended in a dot, so that no search domain is added.
    """

    tls: bool
    host: str
    port: int
    address: Address | None
    absolute: bool


def parse(url: str) -> Target:
    """Reads a URL; user, password, path, query and fragment are passed over.

    Raises:
        InvalidUrlError: nothing can be connected to.
    """
    text = url.strip()
    if not text:
        raise InvalidUrlError("The URL is empty.")
    if len(text) > _LONGEST_URL:
        raise InvalidUrlError(f"The URL is longer than {_LONGEST_URL} characters.")
    # No URL has these (RFC 3986), and programs that take them all the same do not agree.
    if not text.isprintable() or " " in text or "\\" in text:
        raise InvalidUrlError("The URL holds a space, a backslash or a control character.")
    scheme, mark, rest = text.partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in _PORTS:
        raise InvalidUrlError("The URL does not start with http://, https://, ws:// or wss://.")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    if authority.startswith("["):
        inside, bracket, tail = authority[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise InvalidUrlError("The brackets around the URL's host are not right.")
        v6 = _ipv6(inside)
        address: Address | None = v6
        host, absolute = _written(v6), False
    else:
        name, colon, digits = authority.partition(":")
        host, absolute = _name(name)
        address, tail = _ipv4(host), colon + digits
    return Target(
        tls=scheme in ("https", "wss"),
        host=host,
        port=_port(tail[1:]) if tail else _PORTS[scheme],
        address=address,
        absolute=absolute,
    )


def meant(address: Address) -> Address:
    """The address that packets bear: IPv4 for an address that maps one into IPv6."""
    return getattr(address, "ipv4_mapped", None) or address


def _port(digits: str) -> int:
    if not _PORT.match(digits) or not 1 <= int(digits) <= 65_535:
        raise InvalidUrlError("The URL's port is no number from 1 to 65535.")
    return int(digits)


def _name(text: str) -> tuple[str, bool]:
    if len(text) > _LONGEST_HOST:
        raise InvalidUrlError("The URL's host is too long.")
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode("ascii")
        except UnicodeError:
            raise InvalidUrlError("The URL's host is no internationalised domain name.") from None
    text = text.lower()
    host = text.removesuffix(".")
    if not host:
        raise InvalidUrlError("The URL names no host.")
    if len(host) > 253 or not all(_LABEL.match(label) for label in host.split(".")):
        raise InvalidUrlError("The URL's host is neither a domain name nor an address.")
    return host, host != text


def _ipv4(host: str) -> ipaddress.IPv4Address | None:
    if not _NUMBER.match(host.rpartition(".")[2]):  # as URLs are read (WHATWG URL, 3.5)
        return None
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        text = "The URL's host is an address in another form than four decimal numbers."
        raise InvalidUrlError(text) from None
    _check(address)
    return address


def _ipv6(text: str) -> ipaddress.IPv6Address:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise InvalidUrlError("The brackets in the URL hold no IPv6 address.") from None
    if address.scope_id is not None:
        raise InvalidUrlError("The URL's address has a zone, which no policy can name.")
    _check(meant(address))
    return address


def _check(address: Address) -> None:
    broadcast = address.version == 4 and int(address) == 0xFFFF_FFFF
    if address.is_unspecified or address.is_multicast or broadcast:
        raise InvalidUrlError("The URL's address is nobody's, so that nothing can be connected to.")


def _written(address: ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped
    if mapped is None:
        return str(address)
    # Releases of Python differ in how they write these.
    return f"::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}"
