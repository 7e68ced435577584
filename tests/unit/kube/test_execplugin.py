"""Programs that give credentials; they are real ones."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from kars_router.errors import UserError
from kars_router.kube.execplugin import Cluster, ExecPlugin

V1 = "client.authentication.k8s.io/v1"
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def credential(version: str = V1, **status: Any) -> dict[str, Any]:
    return {"kind": "ExecCredential", "apiVersion": version, "status": status}


class Program:
    """A program that prints what a file holds, and notes each of its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "program.py"
        self.script.write_text(
            "import json, os, sys\n"
            f"folder = {str(folder)!r}\n"
            "with open(folder + '/runs', 'a') as runs:\n"
            "    runs.write(os.environ['KUBERNETES_EXEC_INFO'] + '\\n')\n"
            "assert sys.stdin.read() == ''\n"
            "print(open(folder + '/answer').read())\n"
            "sys.exit(int(os.environ.get('STATUS', '0')))\n"
        )

    def says(self, answer: object) -> None:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (self.folder / "answer").write_text(text)

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "runs").read_text().splitlines()]

    def plugin(self, **options: Any) -> ExecPlugin:
        environ = {**os.environ, **options.pop("env", {})}
        command = (sys.executable, str(self.script))
        return ExecPlugin(
            **{
                "command": command,
                "environ": environ,
                "version": V1,
                "interactive": "Never",
                "place": "config: users[0].user.exec",
                "now": lambda: NOW,
                **options,
            }
        )


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


async def test_a_token_is_used_until_it_is_refused(program: Program) -> None:
    program.says(credential(token="first"))
    plugin = program.plugin()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(plugin.headers)
    assert await plugin.headers() == {"authorization": "Bearer first"}
    assert len(program.runs) == 1
    assert plugin.certificate is None

    program.says(credential(token="second"))
    assert plugin.refused()
    assert await plugin.headers() == {"authorization": "Bearer second"}
    assert len(program.runs) == 2
    assert "first" not in repr(plugin)
    assert "second" not in repr(plugin)


async def test_credentials_are_renewed_before_they_expire(program: Program) -> None:
    now = NOW
    plugin = program.plugin(now=lambda: now)
    program.says(credential(token="first", expirationTimestamp="2026-01-01T01:00:00Z"))
    await plugin.headers()
    now = NOW + dt.timedelta(minutes=59)
    await plugin.headers()
    assert len(program.runs) == 1
    now = NOW + dt.timedelta(minutes=59, seconds=31)
    program.says(credential(token="second", expirationTimestamp="2026-01-01T02:00:00+00:00"))
    assert await plugin.headers() == {"authorization": "Bearer second"}
    assert len(program.runs) == 2


async def test_a_program_may_give_a_certificate(program: Program) -> None:
    program.says(credential(clientCertificateData="chain", clientKeyData="key"))
    plugin = program.plugin()
    assert await plugin.headers() == {}
    assert plugin.certificate is not None
    assert (plugin.certificate.chain, plugin.certificate.key) == ("chain", "key")
    same = plugin.certificate
    await plugin.headers()
    assert plugin.certificate is same


async def test_the_program_is_told_what_it_may_know(program: Program) -> None:
    program.says(credential("client.authentication.k8s.io/v1beta1", token="t"))
    beta = "client.authentication.k8s.io/v1beta1"
    await program.plugin(version=beta, cluster=Cluster("https://h", "PEM", "name", False)).headers()
    program.says(credential(token="t"))
    await program.plugin().headers()
    assert program.runs == [
        {
            "kind": "ExecCredential",
            "apiVersion": beta,
            "spec": {
                "interactive": False,
                "cluster": {
                    "server": "https://h",
                    "tls-server-name": "name",
                    "insecure-skip-tls-verify": False,
                    "certificate-authority-data": "UEVN",
                },
            },
        },
        {"kind": "ExecCredential", "apiVersion": V1, "spec": {"interactive": False}},
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "printed no ExecCredential"),
        ("<html>", "printed no ExecCredential"),
        ("[" * 100_000, "printed no ExecCredential"),
        ([], "printed no ExecCredential"),
        ({"kind": "Pod"}, "printed no ExecCredential"),
        (credential("other/v1", token="t"), "printed an ExecCredential that is not of"),
        (credential(), "printed neither a token nor a certificate with its key"),
        ({"kind": "ExecCredential", "apiVersion": V1}, "printed neither a token"),
        (credential(clientCertificateData="c"), "printed neither a token"),
        (credential(token=3), "printed credentials that are no text"),
        (credential(token="two words"), "printed a token that is none"),
        (credential(token="a", expirationTimestamp="soon"), "an expirationTimestamp that is no"),
    ],
)
async def test_what_is_no_credential_is_told(program: Program, answer: object, said: str) -> None:
    program.says(answer)
    with pytest.raises(UserError, match=said) as caught:
        await program.plugin().headers()
    assert str(caught.value).startswith("config: users[0].user.exec: ")


async def test_a_program_that_fails_is_told(program: Program) -> None:
    program.says(credential(token="secret"))
    with pytest.raises(UserError, match="exited with status 7") as caught:
        await program.plugin(env={"STATUS": "7"}).headers()
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"'/none' cannot be started: No such file.*; get it"):
        await program.plugin(command=("/none",), hint="get\nit").headers()
    with pytest.raises(UserError, match="needs a terminal, and there is none"):
        await program.plugin(interactive="Always").headers()
    # After that it may go well.
    plugin = program.plugin()
    assert await plugin.headers() == {"authorization": "Bearer secret"}


async def test_the_time_of_day_decides_on_expiry(program: Program) -> None:
    program.says(credential(token="t", expirationTimestamp="2020-01-01T00:00:00"))
    plugin = ExecPlugin(
        command=(sys.executable, str(program.script)),
        environ=os.environ,
        version=V1,
        interactive="Never",
    )
    await plugin.headers()
    await plugin.headers()
    assert len(program.runs) == 2


async def test_a_program_that_hangs_is_ended(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_router.kube.execplugin._SECONDS", 0.2)
    with pytest.raises(UserError, match=r"did not end within 0\.2 s"):
        await program.plugin(command=("sleep", "1000")).headers()
