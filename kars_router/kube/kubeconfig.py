"""Kubeconfig files: merged as kubectl merges them, and turned into a connection.

Owns their format. Every mistake names the file and the place in it; none repeats a secret.

Source: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
from attrs import define, field, frozen

from kars_router.config.document import parse_document
from kars_router.config.problems import InvalidError
from kars_router.errors import UndeterminedError
from kars_router.kube.connection import Connection
from kars_router.kube.credentials import (
    Certificate,
    Credentials,
    Fixed,
    TokenFile,
    basic,
    bearer,
    read_token,
)
from kars_router.kube.execplugin import Cluster, ExecPlugin

_LARGEST: Final = 8 * 1024 * 1024
_LARGEST_PEM: Final = 1024 * 1024


def load(
    files: Sequence[Path], context: str | None, namespace: str | None, environ: Mapping[str, str]
) -> Connection:
    """Makes the connection that a context stands for.

    Args:
        files: at least one; of what several define, the first counts.
        context: its name; the current one if None.
        namespace: stronger than the context's.
        environ: the variables of the process, for programs that give credentials.

    Raises:
        UndeterminedError: a file cannot be read, or what it says cannot be used.
    """
    merged = _Merged()
    for file in files:
        merged.add(file)
    name = context if context is not None else merged.current
    if not name:
        raise UndeterminedError(f"{files[0]}: current-context is not set; name one with --context")
    chosen = merged.entry("contexts", name, files[0])
    cluster = merged.entry("clusters", chosen.needed("cluster"), chosen.file)
    user_name = chosen.text("user")
    user = merged.entry("users", user_name, chosen.file) if user_name else chosen.nothing("user")
    return _connection(chosen, cluster, user, namespace=namespace, environ=environ)


@frozen
class _Entry:
    """A mapping in a file, and where it is."""

    fields: Mapping[str, Any] = field(repr=False)
    file: Path
    place: str

    def wrong(self, key: str, what: str) -> UndeterminedError:
        return UndeterminedError(f"{self.file}: {self.place}.{key}: {what}")

    def text(self, key: str) -> str:
        value = self.fields.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(key, "is no text")
        return value

    def needed(self, key: str) -> str:
        value = self.text(key)
        if not value:
            raise self.wrong(key, "is missing")
        return value

    def flag(self, key: str) -> bool:
        value = self.fields.get(key)
        if value not in (None, True, False):
            raise self.wrong(key, "is neither true nor false")
        return bool(value)

    def inner(self, key: str) -> _Entry | None:
        value = self.fields.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "is no mapping")
        return _Entry(value, self.file, f"{self.place}.{key}")

    def words(self, key: str) -> list[str]:
        value = self.fields.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(key, "is no list of texts")
        return value

    def path(self, key: str) -> Path | None:
        """A file that it names, relative to its own."""
        value = self.text(key)
        return self.file.parent / value if value else None

    def pem(self, key: str) -> str:
        """What stands in `KEY-data` in base64, or in the file of `KEY`."""
        data = self.text(f"{key}-data")
        if data:
            try:
                return base64.b64decode(data, validate=True).decode("ascii")
            except (binascii.Error, UnicodeDecodeError, ValueError):
                raise self.wrong(f"{key}-data", "is no PEM in base64") from None
        path = self.path(key)
        if path is None:
            return ""
        try:
            with path.open("rb") as opened:
                return opened.read(_LARGEST_PEM).decode("ascii")
        except OSError as error:
            raise self.wrong(key, f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise self.wrong(key, f"{path} is no PEM file") from None

    def nothing(self, key: str) -> _Entry:
        return _Entry({}, self.file, f"{self.place}.{key}")


@define
class _Merged:
    """What several files say together."""

    current: str = ""
    _entries: dict[tuple[str, str], _Entry] = field(factory=dict)

    def add(self, file: Path) -> None:
        top = _Entry(_read(file), file, "")
        current = top.fields.get("current-context")
        if isinstance(current, str):
            self.current = self.current or current
        for section, inner in (("contexts", "context"), ("clusters", "cluster"), ("users", "user")):
            listed = top.fields.get(section) or []
            if not isinstance(listed, list):
                raise UndeterminedError(f"{file}: {section}: is no list")
            for index, each in enumerate(listed):
                place = f"{section}[{index}]"
                name = each.get("name") if isinstance(each, dict) else None
                if not isinstance(name, str):
                    raise UndeterminedError(f"{file}: {place}.name: is missing")
                fields = each.get(inner) or {}
                if not isinstance(fields, dict):
                    raise UndeterminedError(f"{file}: {place}.{inner}: is no mapping")
                entry = _Entry(fields, file, f"{place}.{inner}")
                self._entries.setdefault((section, name), entry)

    def entry(self, section: str, name: str, file: Path) -> _Entry:
        found = self._entries.get((section, name))
        if found is None:
            known = ", ".join(sorted(each for kind, each in self._entries if kind == section))
            raise UndeterminedError(
                f"{file}: there is no {section[:-1]} {name!r}; {section}: {known or 'none'}"
            )
        return found


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
    except OSError as error:
        raise UndeterminedError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise UndeterminedError(f"{file} is longer than {_LARGEST >> 20} MiB")
    try:
        value, problems = parse_document(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UndeterminedError(f"{file} is no text in UTF-8") from None
    except InvalidError as error:
        raise UndeterminedError(f"{file}: {error.problems[0].line}") from None
    if problems:
        raise UndeterminedError(f"{file}: {problems[0].line}")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UndeterminedError(f"{file} is no kubeconfig: it holds no mapping")
    return value


def _connection(
    context: _Entry,
    cluster: _Entry,
    user: _Entry,
    *,
    namespace: str | None,
    environ: Mapping[str, str],
) -> Connection:
    if cluster.text("proxy-url"):
        raise cluster.wrong("proxy-url", "proxies are not supported")
    insecure = cluster.flag("insecure-skip-tls-verify")
    authorities = cluster.pem("certificate-authority")
    if insecure and authorities:
        raise cluster.wrong(
            "insecure-skip-tls-verify", "goes with no certificate-authority, which it would ignore"
        )
    server = _server(cluster)
    whom = Cluster(server, authorities, cluster.text("tls-server-name"), insecure)
    return Connection(
        server=server,
        namespace=namespace or context.text("namespace") or "default",
        source=str(cluster.file),
        authorities=authorities,
        insecure=insecure,
        server_name=whom.server_name,
        credentials=_credentials(user, whom, environ),
        impersonate=_impersonate(user),
    )


def _server(cluster: _Entry) -> str:
    text = cluster.needed("server")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise cluster.wrong("server", f"is no URL: {error}") from None
    if url.scheme not in {"https", "http"} or not url.host:
        raise cluster.wrong("server", "is no URL that begins with https://")
    if url.userinfo or url.query or url.fragment:
        raise cluster.wrong("server", "has a user, a query or a fragment, which goes nowhere")
    return str(url).rstrip("/")


def _credentials(user: _Entry, cluster: Cluster, environ: Mapping[str, str]) -> Credentials:
    if user.inner("auth-provider") is not None:
        raise user.wrong(
            "auth-provider", "is not supported, and gone from Kubernetes too; use exec"
        )
    certificate = _certificate(user)
    plugin = user.inner("exec")
    if plugin is not None:
        return _exec(plugin, cluster, environ, certificate)
    file = user.path("tokenFile")
    if file is not None:
        try:
            read_token(file)
        except UndeterminedError as error:
            raise user.wrong("tokenFile", str(error)) from error
        return TokenFile(file, certificate)
    token, name = user.text("token"), user.text("username")
    if token:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise user.wrong("token", "is no token")
        return Fixed(bearer(token), certificate)
    if name:
        return Fixed(basic(name, user.text("password")), certificate)
    return Fixed({}, certificate)


def _certificate(user: _Entry) -> Certificate | None:
    chain, key = user.pem("client-certificate"), user.pem("client-key")
    if chain and not key:
        raise user.wrong("client-key", "is missing for the client-certificate")
    if key and not chain:
        raise user.wrong("client-certificate", "is missing for the client-key")
    return Certificate(chain, key) if chain else None


def _exec(
    plugin: _Entry,
    cluster: Cluster,
    environ: Mapping[str, str],
    certificate: Certificate | None,
) -> ExecPlugin:
    command = plugin.needed("command")
    if "/" in command:  # relative to the file, as kubectl has it
        command = str(plugin.file.parent.absolute() / command)
    version = plugin.needed("apiVersion")
    if version not in ExecPlugin.VERSIONS:
        known = " or ".join(ExecPlugin.VERSIONS)
        raise plugin.wrong("apiVersion", f"{version!r} is not supported, only {known}")
    mode = plugin.text("interactiveMode") or "IfAvailable"
    if mode not in {"Never", "IfAvailable", "Always"}:
        raise plugin.wrong("interactiveMode", "is none of Never, IfAvailable, Always")
    given = plugin.fields.get("env") or []
    pairs = [
        (each.get("name"), each.get("value")) if isinstance(each, dict) else (None, None)
        for each in (given if isinstance(given, list) else [None])
    ]
    variables: dict[str, str] = {}
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise plugin.wrong("env", "is no list of names with values")
        variables[name] = value
    return ExecPlugin(
        command=(command, *plugin.words("args")),
        environ={**environ, **variables},
        version=version,
        interactive=mode,
        cluster=cluster if plugin.flag("provideClusterInfo") else None,
        hint=plugin.text("installHint"),
        place=f"{plugin.file}: {plugin.place}",
        own=certificate,
    )


def _impersonate(user: _Entry) -> tuple[tuple[str, str], ...]:
    name = user.text("as")
    found = [("impersonate-user", name)] if name else []
    if uid := user.text("as-uid"):
        found.append(("impersonate-uid", uid))
    found += [("impersonate-group", each) for each in user.words("as-groups")]
    extra = user.inner("as-user-extra")
    if extra is not None:
        for key in extra.fields:
            found += [(f"impersonate-extra-{key}", value) for value in extra.words(key)]
    if found and not name:
        raise user.wrong("as", "is missing for what else says whom to act as")
    return tuple(found)
