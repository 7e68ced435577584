"""Running an installer, and what it has installed. tests/update does it with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kars_router.update.installation import Installation, Manner
from kars_router.update.installing import InstallError, install


def program(path: Path, *lines: str) -> None:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)


def environment(place: Path, pip: str, kars: str | None = "echo kars 1.0") -> Installation:
    """One in which `python -m pip` does what one line says, and `kars` what another one does."""
    program(place / "python", f'echo "asked: $*" > {place}/asked', pip)
    if kars is not None:
        program(place / "kars", kars)
    return Installation(Manner.PIP, place, str(place / "python"))


def failure(installation: Installation) -> str:
    with pytest.raises(InstallError) as caught:
        install(installation, "1.0")
    return str(caught.value)


def test_it_installs_and_looks_at_what_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install(environment(tmp_path, "echo out; echo err >&2"), "1.0")
    asked = (tmp_path / "asked").read_text("utf-8")
    assert asked == "asked: -P -m pip install kars-router==1.0\n"
    # What the installer says is not the answer of the command.
    assert capfd.readouterr() == ("", "out\nerr\n")


def test_an_installer_that_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = failure(environment(tmp_path, "echo 'No matching distribution' >&2; exit 7"))
    assert said == "pip failed with exit status 7; what it said is above"
    assert capfd.readouterr().err == "No matching distribution\n"


def test_an_installer_that_is_killed(tmp_path: Path) -> None:
    assert "status -9" in failure(environment(tmp_path, "kill -9 $$"))


def test_an_installer_that_is_not_there(tmp_path: Path) -> None:
    nobody = Installation(Manner.PIP, tmp_path, str(tmp_path / "absent"))
    assert failure(nobody) == "pip cannot be started: No such file or directory"


@pytest.mark.parametrize(
    ("kars", "said"),
    [
        ("echo kars 0.9", "0.9"),
        ("echo nonsense", "'nonsense'"),
        ("echo a; echo 'ImportError: no' >&2; exit 1", "'ImportError: no'"),
        ("exit 3", "'nothing'"),
        ("printf 'kars 1.0\\033[2J\\n'", "1.0[2J"),
    ],
)
def test_what_was_installed_is_run(kars: str, said: str, tmp_path: Path) -> None:
    assert failure(environment(tmp_path, "exit 0", kars)) == (
        f"pip reported success, but `kars --version` says {said}"
    )


def test_what_was_installed_cannot_be_run(tmp_path: Path) -> None:
    broken = environment(tmp_path, "exit 0", kars=None)
    (tmp_path / "kars").write_text("no program", "utf-8")
    assert failure(broken).endswith("says nothing (PermissionError)")


def test_a_copy_without_the_script_is_run_as_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'if [ "$3" = pip ]; then exit 0; fi; echo kars 1.0; echo "$*" > asked2'
    monkeypatch.chdir(tmp_path)
    install(environment(tmp_path, script, kars=None), "1.0")
    assert (tmp_path / "asked2").read_text("utf-8") == "-P -m kars_router --version\n"


def test_uv_runs_where_its_project_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools / "uv", f"pwd > {tmp_path}/where")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    program(tmp_path / "kars", "echo kars 1.0")
    install(Installation(Manner.UV, tmp_path, str(tmp_path / "python"), uses_uv=True), "1.0")
    assert (tmp_path / "where").read_text("utf-8") == f"{tmp_path}\n"


def test_an_interrupt_is_the_installers_to_heed(tmp_path: Path) -> None:
    # It takes its time to clean up; we are there until it has ended, and end as interrupted then.
    script = (
        "trap 'echo cleaning up; echo done > cleaned; exit 130' INT",
        "echo ready",
        "while :; do sleep 0.05; done",
    )
    program(tmp_path / "python", *script)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kars_router.update.installation import Installation, Manner\n"
        "from kars_router.update.installing import install\n"
        "place = Path(sys.argv[1])\n"
        "try:\n"
        "    install(Installation(Manner.PIP, place, str(place / 'python')), '1.0')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', (place / 'cleaned').read_text().strip())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "ready\n"
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        out, err = child.communicate(timeout=20)
    assert err == "cleaning up\n"
    assert out == "interrupted done\n"
