"""How an API server is reached, and how that is found out: flags, kubeconfig, or the pod's account.

Owns the order in which places are looked at. What stands in a kubeconfig is `kubeconfig`'s.

Source: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/,
https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from kars_router.errors import UndeterminedError
from kars_router.kube.credentials import Credentials, Fixed, TokenFile, read_token

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@frozen(kw_only=True)
class Connection:
    """An API server and who we are to it.

    Attributes:
        server: its URL, without a slash at the end; it may have a path.
        namespace: where objects are that name no namespace.
        source: where this was found, for messages.
        authorities: PEM of those that vouch for it; empty for those of the system.
        insecure: nobody has to vouch for it.
        server_name: the name in its certificate, if not the host in the URL.
        credentials: who we are.
        impersonate: headers that say whom we act as.
        seconds: until an answer has to begin, and from then on until it has to end.
    """

    server: str
    namespace: str = "default"
    source: str = ""
    authorities: str = field(default="", repr=False)
    insecure: bool = False
    server_name: str = ""
    credentials: Credentials = field(factory=Fixed)
    impersonate: tuple[tuple[str, str], ...] = ()
    seconds: float = 30.0


def connection_from(
    kubeconfig: Path | None,
    context: str | None,
    namespace: str | None,
    environ: Mapping[str, str],
    *,
    account: Path = SERVICE_ACCOUNT,
) -> Connection:
    """Finds out how to reach the API server; asks no server and starts nothing.

    The first that is there counts: the file given, the files of `KUBECONFIG`, `~/.kube/config`,
    the service account of the pod.

    Args:
        kubeconfig: the file, if one was named.
        context: the context in it; its current one if None.
        namespace: the namespace for objects that name none; the context's if None.
        environ: the variables of the process.
        account: the directory with the files of the pod's service account.

    Raises:
        UndeterminedError: nothing is configured, or what is cannot be used; names the file.
    """
    from kars_router.kube.kubeconfig import load

    files = [kubeconfig] if kubeconfig is not None else _files(environ)
    if files:
        return load(files, context, namespace, environ)
    if context is None and "KUBERNETES_SERVICE_HOST" in environ and (account / "token").exists():
        return _in_cluster(namespace, environ, account)
    raise UndeterminedError(
        "no cluster is configured: name a file with --kubeconfig or KUBECONFIG,"
        " or write ~/.kube/config"
    )


def _files(environ: Mapping[str, str]) -> list[Path]:
    named = [Path(each) for each in environ.get("KUBECONFIG", "").split(os.pathsep) if each]
    if named:
        # Of several, some may be missing.
        return [each for each in named if each.exists()] or named[:1]
    home = environ.get("HOME") or environ.get("USERPROFILE")
    usual = Path(home, ".kube", "config") if home else None
    return [usual] if usual is not None and usual.exists() else []


def _in_cluster(namespace: str | None, environ: Mapping[str, str], account: Path) -> Connection:
    host = environ["KUBERNETES_SERVICE_HOST"]
    port = environ.get("KUBERNETES_SERVICE_PORT") or "443"
    read_token(account / "token")
    return Connection(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        namespace=namespace or _text(account / "namespace") or "default",
        source=str(account),
        authorities=_text(account / "ca.crt"),
        credentials=TokenFile(account / "token"),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UndeterminedError(f"{path} cannot be read: {error}") from error
