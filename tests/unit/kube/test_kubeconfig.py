"""Kubeconfig files: what they may say, and what is said about their mistakes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kars_router.errors import UserError
from kars_router.kube import Connection, connection_from
from kars_router.kube.credentials import Certificate, Fixed, TokenFile
from kars_router.kube.execplugin import ExecPlugin

PEM = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"
KEY = PEM.replace("CERTIFICATE", "PRIVATE KEY")


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def document(
    cluster: dict[str, Any] | None = None,
    user: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", **(context or {})}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://host:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
    }


def write(folder: Path, content: object, name: str = "config") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else msgspec.json.encode(content))
    return file


def load(folder: Path, content: object, context: str | None = None) -> Connection:
    return connection_from(write(folder, content), context, None, {"PATH": "/bin"})


def test_a_context_names_a_cluster_a_user_and_a_namespace(tmp_path: Path) -> None:
    found = load(tmp_path, document(context={"namespace": "n"}))
    assert found == Connection(
        server="https://host:6443", namespace="n", source=str(tmp_path / "config")
    )
    chosen = connection_from(tmp_path / "config", "c", "other", {})
    assert chosen.namespace == "other"
    assert load(tmp_path, document()).namespace == "default"


def test_yaml_is_read_as_well(tmp_path: Path) -> None:
    text = b"""
apiVersion: v1
kind: Config
current-context: c
contexts:
- {name: c, context: {cluster: k}}
clusters:
- name: k
  cluster:
    server: https://host/k8s/clusters/c-1/
"""
    found = load(tmp_path, text)
    assert found.server == "https://host/k8s/clusters/c-1"
    assert found.credentials == Fixed({})


def test_everything_about_a_cluster_is_taken_over(tmp_path: Path) -> None:
    found = load(
        tmp_path, document({"certificate-authority-data": coded(PEM), "tls-server-name": "name"})
    )
    assert (found.authorities, found.server_name, found.insecure) == (PEM, "name", False)
    (tmp_path / "ca.pem").write_text(PEM)
    assert load(tmp_path, document({"certificate-authority": "ca.pem"})).authorities == PEM
    assert load(tmp_path, document({"insecure-skip-tls-verify": True})).insecure


async def test_every_kind_of_user_is_understood(tmp_path: Path) -> None:
    token = load(tmp_path, document(user={"token": "t"})).credentials
    assert await token.headers() == {"authorization": "Bearer t"}
    basic = load(tmp_path, document(user={"username": "a", "password": "b"})).credentials
    assert await basic.headers() == {"authorization": "Basic YTpi"}

    data = {"client-certificate-data": coded(PEM), "client-key-data": coded(KEY)}
    assert load(tmp_path, document(user=data)).credentials.certificate == Certificate(PEM, KEY)
    (tmp_path / "a.pem").write_text(PEM)
    (tmp_path / "a.key").write_text(KEY)
    files = {"client-certificate": "a.pem", "client-key": str(tmp_path / "a.key"), "token": "t"}
    both = load(tmp_path, document(user=files)).credentials
    assert both.certificate == Certificate(PEM, KEY)
    assert await both.headers() == {"authorization": "Bearer t"}

    (tmp_path / "token").write_text("abc\n")
    kept = load(tmp_path, document(user={"tokenFile": "token", "token": "not this one"}))
    assert isinstance(kept.credentials, TokenFile)
    assert await kept.credentials.headers() == {"authorization": "Bearer abc"}


def test_a_program_for_credentials_is_understood(tmp_path: Path) -> None:
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./bin/login",
            "args": ["a", "b"],
            "env": [{"name": "X", "value": "1"}],
            "installHint": "buy it",
            "interactiveMode": "Never",
            "provideClusterInfo": True,
        }
    }
    found = load(tmp_path, document(user=user)).credentials
    assert isinstance(found, ExecPlugin)
    assert found.command == (str(tmp_path / "bin" / "login"), "a", "b")
    assert found.environ == {"PATH": "/bin", "X": "1"}
    assert (found.interactive, found.hint) == ("Never", "buy it")
    assert found.cluster is not None
    assert found.cluster.server == "https://host:6443"
    user["exec"] |= {"command": "login", "provideClusterInfo": False, "interactiveMode": None}
    plain = load(tmp_path, document(user=user)).credentials
    assert isinstance(plain, ExecPlugin)
    assert (plain.command[0], plain.cluster, plain.interactive) == ("login", None, "IfAvailable")


def test_somebody_may_be_acted_as(tmp_path: Path) -> None:
    user = {
        "as": "u",
        "as-uid": "7",
        "as-groups": ["g", "h"],
        "as-user-extra": {"scope": ["x", "y"]},
    }
    assert load(tmp_path, document(user=user)).impersonate == (
        ("impersonate-user", "u"),
        ("impersonate-uid", "7"),
        ("impersonate-group", "g"),
        ("impersonate-group", "h"),
        ("impersonate-extra-scope", "x"),
        ("impersonate-extra-scope", "y"),
    )


def test_the_first_of_several_files_counts(tmp_path: Path) -> None:
    first = document({"server": "https://first"})
    del first["users"], first["current-context"]
    second = document({"server": "https://second"}, {"token": "t"})
    second["contexts"].append({"name": "d", "context": {"cluster": "k"}})
    files = (
        f"{write(tmp_path, first, 'one')}:{tmp_path / 'missing'}:{write(tmp_path, second, 'two')}"
    )
    found = connection_from(None, None, None, {"KUBECONFIG": files})
    assert found.server == "https://first"
    assert found.credentials == Fixed({"authorization": "Bearer t"})
    assert connection_from(None, "d", None, {"KUBECONFIG": files}).server == "https://first"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "current-context is not set; name one with --context"),
        (b"[1]", "is no kubeconfig: it holds no mapping"),
        (b"a: [", "line 1"),
        (b"\xff", "is no text in UTF-8"),
        (b"a: 1\na: 2", "a"),
        ({"contexts": 3, "current-context": "c"}, "contexts: is no list"),
        ({"contexts": [3]}, "contexts[0].name: is missing"),
        ({"users": [{"name": "u", "user": 3}]}, "users[0].user: is no mapping"),
        ({"current-context": "x"}, "there is no context 'x'; contexts: none"),
        (document(context={"cluster": "x"}), "there is no cluster 'x'; clusters: k"),
        (document(context={"cluster": None}), "contexts[0].context.cluster: is missing"),
        (document(context={"user": "x"}), "there is no user 'x'; users: u"),
        (document(context={"user": 3}), "contexts[0].context.user: is no text"),
        (document({"server": ""}), "clusters[0].cluster.server: is missing"),
        (document({"server": "host:6443"}), "server: is no URL that begins with https://"),
        (document({"server": "https://[::1"}), "server: is no URL"),
        (document({"server": "https://a:b@host"}), "server: has a user, a query or a fragment"),
        (document({"proxy-url": "http://p"}), "proxy-url: proxies are not supported"),
        (document({"insecure-skip-tls-verify": "yes"}), "is neither true nor false"),
        (
            document({"insecure-skip-tls-verify": True, "certificate-authority-data": coded(PEM)}),
            "insecure-skip-tls-verify: goes with no certificate-authority",
        ),
        (document({"certificate-authority-data": "%"}), "is no PEM in base64"),
        (document({"certificate-authority-data": coded("ä")}), "is no PEM in base64"),
        (document({"certificate-authority": "missing"}), "missing cannot be read: No such file"),
        (document(user={"client-certificate-data": coded(PEM)}), "user.client-key: is missing"),
        (document(user={"client-key-data": coded(KEY)}), "user.client-certificate: is missing"),
        (document(user={"token": "two words"}), "users[0].user.token: is no token"),
        (document(user={"token": "t\n"}), "users[0].user.token: is no token"),
        (document(user={"tokenFile": "missing"}), "missing cannot be read: No such file"),
        (document(user={"auth-provider": {"name": "gcp"}}), "auth-provider: is not supported"),
        (document(user={"as-groups": ["g"]}), "user.as: is missing"),
        (document(user={"as": "u", "as-groups": "g"}), "as-groups: is no list of texts"),
        (document(user={"exec": 3}), "users[0].user.exec: is no mapping"),
        (document(user={"exec": {"command": "x"}}), "exec.apiVersion: is missing"),
        (
            document(user={"exec": {"command": "x", "apiVersion": "v1alpha1"}}),
            "exec.apiVersion: 'v1alpha1' is not supported",
        ),
        (
            document(
                user={
                    "exec": {
                        "command": "x",
                        "apiVersion": "client.authentication.k8s.io/v1",
                        "interactiveMode": "Sometimes",
                    }
                }
            ),
            "interactiveMode: is none of Never, IfAvailable, Always",
        ),
        (
            document(
                user={
                    "exec": {
                        "command": "x",
                        "apiVersion": "client.authentication.k8s.io/v1",
                        "env": {"X": "1"},
                    }
                }
            ),
            "env: is no list of names with values",
        ),
    ],
)
def test_a_mistake_is_named_with_its_file_and_place(
    tmp_path: Path, content: object, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, content)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing cannot be read: No such file"):
        connection_from(tmp_path / "missing", None, None, {})
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        connection_from(tmp_path, None, None, {})
    (tmp_path / "large").write_bytes(b" " * (9 << 20))
    with pytest.raises(UserError, match="is longer than 8 MiB"):
        connection_from(tmp_path / "large", None, None, {})
    (tmp_path / "ca.der").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"ca\.der is no PEM file"):
        load(tmp_path, document({"certificate-authority": "ca.der"}))


def test_no_secret_is_shown(tmp_path: Path) -> None:
    user = {
        "token": "s3cr3t",
        "client-certificate-data": coded(PEM),
        "client-key-data": coded(KEY.replace("abc", "s3cr3t")),
    }
    assert "s3cr3t" not in repr(load(tmp_path, document(user=user)))
    assert "s3cr3t" not in repr(
        load(tmp_path, document(user={"username": "a", "password": "s3cr3t"}))
    )
