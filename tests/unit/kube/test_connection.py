"""Where a connection is found: the order of places, and the account of a pod."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from kars_router.errors import UserError
from kars_router.kube import connection_from
from kars_router.kube.credentials import TokenFile, read_token

CONFIG = (
    "{{current-context: c, contexts: [{{name: c, context: {{cluster: k}}}}],"
    " clusters: [{{name: k, cluster: {{server: 'https://{host}'}}}}]}}"
)


@pytest.fixture
def account(tmp_path: Path) -> Path:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("abc")
    (folder / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (folder / "namespace").write_text("here\n")
    return folder


def config(folder: Path, host: str) -> Path:
    file = folder / host
    file.write_text(CONFIG.format(host=host))
    return file


def test_the_first_place_that_is_there_counts(tmp_path: Path, account: Path) -> None:
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text(CONFIG.format(host="usual"))
    environ = {
        "KUBECONFIG": str(config(tmp_path, "variable")),
        "HOME": str(tmp_path),
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }
    flag = config(tmp_path, "flag")

    def found(flag: Path | None = None) -> str:
        return connection_from(flag, None, None, environ, account=account).server

    assert found(flag) == "https://flag"
    assert found() == "https://variable"
    environ["KUBECONFIG"] = ""
    assert found() == "https://usual"
    environ["HOME"] = "/nonexistent"
    assert found() == "https://10.0.0.1:443"
    environ["KUBERNETES_SERVICE_HOST"] = "fd00::1"
    assert found() == "https://[fd00::1]:443"


def test_nothing_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cluster is configured: name a file with --kubeconfig"):
        connection_from(None, None, None, {}, account=tmp_path)
    with pytest.raises(UserError, match="missing cannot be read"):
        connection_from(None, None, None, {"KUBECONFIG": str(tmp_path / "missing")})
    # Outside a pod the variables alone say nothing, and an account has no contexts.
    with pytest.raises(UserError, match="no cluster is configured"):
        connection_from(None, None, None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, account=tmp_path)


async def test_a_pod_s_account_has_all_that_is_needed(account: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    found = connection_from(None, None, None, environ, account=account)
    assert found.server == "https://10.0.0.1:443"
    assert found.namespace == "here"
    assert found.authorities.startswith("-----BEGIN")
    assert await found.credentials.headers() == {"authorization": "Bearer abc"}
    assert connection_from(None, None, "n", environ, account=account).namespace == "n"
    with pytest.raises(UserError, match="no cluster is configured"):
        connection_from(None, "c", None, environ, account=account)
    (account / "ca.crt").unlink()
    with pytest.raises(UserError, match=r"ca\.crt cannot be read"):
        connection_from(None, None, None, environ, account=account)


async def test_a_token_is_read_again(account: Path, mock_clock: MockClock) -> None:
    file = account / "token"
    tokens = TokenFile(file)
    assert await tokens.headers() == {"authorization": "Bearer abc"}
    file.write_text("def")
    assert await tokens.headers() == {"authorization": "Bearer abc"}
    mock_clock.jump(10)
    assert await tokens.headers() == {"authorization": "Bearer def"}

    assert not tokens.refused()  # the file has no other
    assert await tokens.headers() == {"authorization": "Bearer def"}
    file.write_text("ghi")
    assert tokens.refused()
    assert await tokens.headers() == {"authorization": "Bearer ghi"}

    file.unlink()
    mock_clock.jump(10)
    with pytest.raises(UserError, match=r"the token in .* cannot be read: No such file"):
        await tokens.headers()


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"t\xc3\xa4", b"a\nb", b"a\x00b"])
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(UserError, match="token holds no token"):
        read_token(file)
