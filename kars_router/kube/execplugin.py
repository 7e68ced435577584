"""Credentials that a program gives, as cloud providers have it.

Owns the protocol with the program and how long its answer is used.

Source: https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins.
"""

from __future__ import annotations

import base64
import datetime as dt
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import msgspec
import trio
from attrs import define, field, frozen

from kars_router.errors import UndeterminedError
from kars_router.kube.credentials import Certificate, bearer

_SECONDS: Final = 60.0
_INTERACTIVE_SECONDS: Final = 600.0  # a person logs in
_EARLY: Final = dt.timedelta(seconds=30)  # so that a request is there before the expiry


@frozen
class Cluster:
    """What the program may be told about the cluster."""

    server: str
    authorities: str
    server_name: str
    insecure: bool

    def told(self) -> dict[str, Any]:
        """As the protocol has it."""
        return {
            "server": self.server,
            "tls-server-name": self.server_name,
            "insecure-skip-tls-verify": self.insecure,
            "certificate-authority-data": base64.b64encode(self.authorities.encode()).decode(),
        }


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@define(kw_only=True)
class ExecPlugin:
    """Runs the program when there are no credentials, or when they are about to expire.

    Attributes:
        command: the program and its arguments.
        environ: all of its environment.
        version: the `apiVersion` that the kubeconfig asks for.
        interactive: `Never`, `IfAvailable` or `Always`.
        cluster: what it is told, or None.
        hint: how to get the program, from the kubeconfig.
        place: where it was configured, for messages.
        own: the certificate that the kubeconfig has beside it.
        now: the time of day.
    """

    VERSIONS: ClassVar = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")

    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    version: str
    interactive: str = "IfAvailable"
    cluster: Cluster | None = None
    hint: str = ""
    place: str = ""
    own: Certificate | None = None
    now: Callable[[], dt.datetime] = _now
    _headers: Mapping[str, str] | None = field(default=None, init=False, repr=False)
    _certificate: Certificate | None = field(default=None, init=False, repr=False)
    _expires: dt.datetime | None = field(default=None, init=False)
    _lock: trio.Lock = field(factory=trio.Lock, init=False)

    @property
    def certificate(self) -> Certificate | None:
        """See `Credentials.certificate`."""
        return self._certificate or self.own

    async def headers(self) -> Mapping[str, str]:
        """See `Credentials.headers`. Requests that come at the same time share one run."""
        async with self._lock:
            expired = self._expires is not None and self.now() + _EARLY >= self._expires
            if self._headers is None or expired:
                self._take(await self._run())
            assert self._headers is not None
            return self._headers

    def refused(self) -> bool:
        """See `Credentials.refused`."""
        self._headers = None
        return True

    async def _run(self) -> bytes:
        terminal = sys.stdin is not None and sys.stdin.isatty() and self.interactive != "Never"
        if self.interactive == "Always" and not terminal:
            raise self._failure("needs a terminal, and there is none")
        seconds = _INTERACTIVE_SECONDS if terminal else _SECONDS
        try:
            with trio.move_on_after(seconds):
                done = await trio.run_process(
                    list(self.command),
                    stdin=None if terminal else subprocess.DEVNULL,
                    capture_stdout=True,  # what it says on stderr is for the user
                    check=False,
                    env={**self.environ, "KUBERNETES_EXEC_INFO": self._info(interactive=terminal)},
                )
                if done.returncode:
                    raise self._failure(f"exited with status {done.returncode}")
                return bytes(done.stdout or b"")
        except OSError as error:
            hint = f"; {' '.join(self.hint.split())}" if self.hint else ""
            raise self._failure(f"cannot be started: {error.strerror}{hint}") from error
        raise self._failure(f"did not end within {seconds:g} s")

    def _info(self, *, interactive: bool) -> str:
        spec: dict[str, Any] = {"interactive": interactive}
        if self.cluster is not None:
            spec["cluster"] = self.cluster.told()
        info = {"kind": "ExecCredential", "apiVersion": self.version, "spec": spec}
        return msgspec.json.encode(info).decode()

    def _take(self, data: bytes) -> None:
        try:
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError):
            value = None
        if not isinstance(value, dict) or value.get("kind") != "ExecCredential":
            raise self._failure("printed no ExecCredential")
        if value.get("apiVersion") != self.version:
            raise self._failure(f"printed an ExecCredential that is not of {self.version}")
        status = value.get("status")
        status = status if isinstance(status, dict) else {}
        token, chain, key = (
            status.get(name) for name in ("token", "clientCertificateData", "clientKeyData")
        )
        if not token and not (chain and key):
            raise self._failure("printed neither a token nor a certificate with its key")
        if not all(isinstance(each, str | None) for each in (token, chain, key)):
            raise self._failure("printed credentials that are no text")
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise self._failure("printed a token that is none")
        self._expires = self._time(status.get("expirationTimestamp"))
        self._headers = bearer(token) if token else {}
        self._certificate = Certificate(chain, key) if chain and key else None

    def _time(self, text: object) -> dt.datetime | None:
        if text is None:
            return None
        try:
            found = dt.datetime.fromisoformat(str(text))
        except ValueError:
            raise self._failure("printed an expirationTimestamp that is no time") from None
        return found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)

    def _failure(self, what: str) -> UndeterminedError:
        return UndeterminedError(f"{self.place}: {self.command[0]!r} {what}")
