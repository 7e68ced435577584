"""One GET, bounded in every way that a server could abuse.

Owns what a server may make us do: how many redirects, where to, how much it may send, what of it
is repeated. Blocks, and looks at the clock only between reads: what ends a server's dribble in any
case is the timer of the process (see `kars_router.update.__main__`).

Of the standard library rather than httpx: proxies and certificates have to be those of the user's
installer, and `kars_router.transports` knows neither, by design.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

from attrs import frozen

from kars_router._version import __version__
from kars_router.update.settings import Login, Wire, is_loopback, is_trusted, origin

_MOST_REDIRECTS: Final = 4
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PIECE: Final = 65_536


class FetchError(Exception):
    """Nothing usable came; the message is a clause that goes on from the name of the server.

    Attributes:
        status: of the answer, if there was one that was not wanted; else 0.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@frozen
class Answer:
    """What a server sent: the media type and the whole body."""

    content_type: str
    body: bytes


class Client:
    """Gets pages over one set of certificates and proxies.

    Args:
        wire: the way to servers.
        deadline: by the monotonic clock; nothing is begun after it.
        longest: octets of a body that are read at most.
    """

    def __init__(self, wire: Wire, *, deadline: float, longest: int) -> None:
        self._wire = wire
        self._deadline = deadline
        self._longest = longest
        self._openers: dict[tuple[str, bool], urllib.request.OpenerDirector] = {}

    def get(self, url: str, *, accept: str, login: Login | None = None) -> Answer:
        """Gets a page.

        Args:
            url: http or https, without a user.
            accept: the media types that are wanted.
            login: shown to the server of `url` and to nobody else.

        Raises:
            FetchError: there is no page, for whatever reason.
        """
        first = origin(url)
        for _ in range(_MOST_REDIRECTS + 1):
            headers = {
                "accept": accept,
                # A limit of octets means something only if nobody unpacks them.
                "accept-encoding": "identity",
                "user-agent": f"kars-router/{__version__}",
            }
            if login is not None and origin(url) == first:
                headers["authorization"] = f"Basic {_encoded(login)}"
            answer = self._once(url, headers)
            if isinstance(answer, Answer):
                return answer
            url = self._target(url, answer)
        raise FetchError("redirects without an end")

    def _once(self, url: str, headers: dict[str, str]) -> Answer | str:
        """Asks once: the page, or where else to look for it."""
        self._check(url)
        try:
            request = urllib.request.Request(url, headers=headers)  # noqa: S310 (http or https)
            with self._opener(url).open(request, timeout=self._left()) as response:
                return self._read(response)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _REDIRECTS and (target := error.headers.get("location")):
                    return target
            raise FetchError(f"answered with status {error.code}", error.code) from None
        except urllib.error.URLError as error:
            reason = error.reason
            raise FetchError(_said(reason if isinstance(reason, Exception) else error)) from None
        # The last one: what cannot be a host name, and the like.
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(_said(error)) from None

    def _read(self, response: http.client.HTTPResponse) -> Answer:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError("packed its answer, though asked not to")
        pieces = []
        size = 0
        while piece := response.read1(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > self._longest:
                raise FetchError(f"sent more than {self._longest // 1024} KiB")
            self._left()
        if response.length:
            raise FetchError("ended its answer halfway through")
        return Answer(response.headers.get("content-type", ""), b"".join(pieces))

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise FetchError("did not answer in time")
        return left

    def _check(self, url: str) -> None:
        scheme, host, _ = origin(url)
        if scheme == "https" or self._wire.plain or is_loopback(host):
            return
        if not is_trusted(url, self._wire.trusted):
            raise FetchError("is not spoken to without TLS, unless it is declared to be trusted")

    def _target(self, url: str, location: str) -> str:
        """Where a redirect leads: to the same host, or over TLS to another one."""
        try:
            there = urljoin(url, location)
            scheme, host, _ = origin(there)
            clean = "@" not in urlsplit(there).netloc and there.isascii() and there.isprintable()
        except ValueError:
            raise FetchError("redirects to something that is no web address") from None
        was, whence, _ = origin(url)
        if not clean or " " in there:
            raise FetchError("redirects to something that is no web address")
        if scheme != "https" and (was == "https" or host != whence):
            raise FetchError("redirects to where there is no TLS")
        return there

    def _opener(self, url: str) -> urllib.request.OpenerDirector:
        key = (origin(url)[0], is_trusted(url, self._wire.trusted))
        if key not in self._openers:
            self._openers[key] = self._new_opener(key[0], trusted=key[1])
        return self._openers[key]

    def _new_opener(self, scheme: str, *, trusted: bool) -> urllib.request.OpenerDirector:
        proxy = self._wire.proxy
        # With nothing that opens files, follows redirects on its own, or asks for a password.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else None),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        if scheme == "https":  # reading all certificates takes a while
            opener.add_handler(urllib.request.HTTPSHandler(context=self._context(trusted=trusted)))
        return opener

    def _context(self, *, trusted: bool) -> ssl.SSLContext:
        authorities = self._wire.ca_file
        try:
            if Path(authorities).is_dir() and authorities:
                context = ssl.create_default_context(capath=authorities)
            else:
                context = ssl.create_default_context(cafile=authorities or None)
            if self._wire.client_cert:
                # A key with a password is of no use here: nobody can be asked for it.
                context.load_cert_chain(self._wire.client_cert, password=str)
        except (OSError, ValueError):
            raise FetchError("is not asked: the configured certificates cannot be read") from None
        # Authorities of companies do not always follow RFC 5280, and installers do not mind.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if trusted:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _encoded(login: Login) -> str:
    return base64.b64encode(":".join(login).encode()).decode()


def _said(error: Exception) -> str:
    """What is said of an error: nothing that a server may have chosen the words of."""
    match error:
        case TimeoutError():
            return "did not answer in time"
        case ssl.SSLCertVerificationError():
            return "has a certificate that is not trusted"
        case ssl.SSLError():
            return "does not speak TLS as it should"
        case socket.gaierror():
            return "has a name that cannot be resolved"
        case OSError() if error.strerror:
            return f"cannot be reached: {error.strerror}"
        case _:
            return "does not speak HTTP as it should"
