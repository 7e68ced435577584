"""Updating what pip, pipx and uv have installed, and what becomes of it when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from update import terminal
from update.conftest import Shelf
from update.copies import BROKEN, NEW, OLD, Copy, build

BY = {
    "pip": "pip in a virtual environment",
    "pipx": "pipx",
    "pipx with uv": "pipx",
    "uv tool": "uv tool",
    "uv": "uv in a virtual environment",
}


def test_a_copy_is_updated_with_what_installed_it(new_copy: Copy, shelf: Shelf) -> None:
    copy = new_copy
    assert copy.version() == OLD

    done = copy.run("update", "--check")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"kars {OLD} is the newest release\n",
        "",
    )

    shelf.stock(OLD, NEW)
    done = copy.run("update", "--check", "-o", "json")
    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert answer["newer"] is True
    assert answer["releases"] == [{"version": NEW, "summary": "Faster starts."}]
    assert answer["installedBy"] == BY[copy.how]

    shown = copy.show("update", answers={"Install it now?": "n\n"})
    assert shown.status == 1
    assert shown.lines[:5] == [
        f"kars {NEW} is out, this is {OLD}",
        "",
        f"  {NEW}  Faster starts.",
        "",
        f"Release notes: {shelf.index.repository}",
    ]
    assert copy.version() == OLD

    shown = copy.show("update", answers={"Install it now?": "y\n"})
    assert shown.status == 0, shown.text
    # Before it, pipx shows the cursor that it has hidden.
    assert shown.lines[-1].endswith(f"kars {NEW} is installed")
    assert copy.version() == NEW

    done = copy.run("update", "--yes")
    assert (done.returncode, done.stdout) == (0, f"kars {NEW} is the newest release\n")


def test_what_was_asked_for_by_version_is_kept_by_uv(shelf: Shelf, tmp_path: Path) -> None:
    # uv holds on to a version that it was given; pipx and pip do not.
    copy = Copy("uv tool", tmp_path, shelf.index)
    copy.install(f"kars-router=={OLD}")
    shelf.stock(OLD, NEW)
    done = copy.run("update", "--yes")
    assert done.returncode == 1
    assert f"uv reported success, but `kars --version` says {OLD}" in done.stderr or (
        "uv failed with exit status" in done.stderr
    )
    assert copy.version() == OLD


def test_an_index_that_pipx_was_given_counts_from_then_on(shelf: Shelf, tmp_path: Path) -> None:
    copy = Copy("pipx", tmp_path, shelf.index)
    url = shelf.index.simple.replace("//", "//me:secret@")
    shelf.index.login = "me:secret"
    copy.variables["PIP_INDEX_URL"] = url
    copy.do("pipx", "install", "--backend", "pip", f"--pip-args=--index-url={url}", "kars-router")
    copy.variables["PIP_INDEX_URL"] = "https://elsewhere.invalid/simple"
    shelf.stock(OLD, NEW)
    shelf.index.login = "me:secret"
    done = copy.run("update", "--yes")
    assert (done.returncode, copy.version()) == (0, NEW), done.stderr
    assert "secret" not in done.stdout


# By pip, in detail


def test_yes_without_a_terminal(copy: Copy) -> None:
    done = copy.run("update", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"kars {NEW} is installed"
    assert f"Successfully installed kars-router-{NEW}" in done.stderr
    assert copy.version() == NEW


@pytest.mark.parametrize("streams", ["stdin", "stdout"])
def test_nobody_is_asked_unless_there_is_a_terminal_on_both_sides(streams: str, copy: Copy) -> None:
    redirect = '"$0" update </dev/null' if streams == "stdin" else '"$0" update | cat'
    command = ("bash", "-o", "pipefail", "-c", redirect, copy.kars)
    shown = terminal.run(command, copy.variables, cwd=copy.home)
    assert shown.status == 1
    assert "Install it now?" not in shown.text
    assert f"Update with: {copy.kars.parent}/python" in shown.text
    assert copy.version() == OLD


def test_a_download_that_is_not_what_was_announced(copy: Copy, shelf: Shelf) -> None:
    shelf.release(NEW).announced = b"something else"
    done = copy.run("update", "--yes")
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"kars: {NEW} was not installed: pip failed with exit status 1; what it said is above"
    )
    assert copy.version() == OLD


def test_an_index_that_pip_cannot_install_from(copy: Copy, shelf: Shelf) -> None:
    shelf.release(NEW).content = b"no wheel"
    done = copy.run("update", "--yes")
    assert done.returncode == 1
    assert "pip failed with exit status" in done.stderr
    assert copy.version() == OLD


def test_a_release_that_does_not_start(copy: Copy, shelf: Shelf) -> None:
    shelf.stock(OLD, BROKEN)
    done = copy.run("update", "--yes")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"kars: {BROKEN} was not installed: pip reported success, but `kars --version` says "
        "'ImportError: this release is broken'"
    )


@pytest.mark.parametrize("speaks_json", [True, False], ids=["json", "html"])
def test_what_pip_would_not_install_is_not_offered(
    speaks_json: bool, copy: Copy, shelf: Shelf, python_version: str
) -> None:
    shelf.index.speaks_json = speaks_json
    try:
        assert copy.run("update", "--check").returncode == 1
        shelf.release(NEW).requires_python = f">{python_version}"
        assert copy.run("update", "--check").returncode == 0
        shelf.release(NEW).requires_python = f">={python_version}"
        assert copy.run("update", "--check").returncode == 1
        shelf.release(NEW).yanked = "because"
        assert copy.run("update", "--check").returncode == 0
        shelf.release(NEW).yanked = None
        shelf.index.add("kars_router-8.0.0rc1-py3-none-any.whl")
        answer = json.loads(copy.run("update", "--check", "-o", "json").stdout)
        assert answer["newest"] == NEW
    finally:
        shelf.index.speaks_json = True


def test_logins_work_and_are_never_shown(copy: Copy, shelf: Shelf) -> None:
    shelf.index.login = "me:secret"
    assert copy.run("update", "--check").returncode == 3
    netrc = copy.home / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n", "utf-8")
    netrc.chmod(0o600)
    by_netrc = copy.run("update", "--check")
    netrc.unlink()
    url = shelf.index.simple.replace("//", "//me:secret@")
    by_url = copy.given(PIP_INDEX_URL=url).run("--debug", "update", "--check", "-o", "json")
    url = url.replace("secret", "top-secret")
    wrong = copy.given(PIP_INDEX_URL=url).run("--debug", "update")
    assert [each.returncode for each in (by_netrc, by_url, wrong)] == [1, 1, 3]
    for done in (by_netrc, by_url, wrong):
        assert "secret" not in done.stdout + done.stderr
    for path in (copy.home / ".kars").iterdir():
        assert "secret" not in path.read_text("utf-8")
    # The place of the release notes was never shown a login.
    notes = [each for each in shelf.index.asked if each.path.startswith("/api/")]
    assert [each.login for each in notes if each.login] == []


def test_the_settings_in_files_count(copy: Copy, shelf: Shelf) -> None:
    for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE"):
        del copy.variables[name]
    config = copy.home / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text(f"[global]\nindex-url = {shelf.index.simple}\n", "utf-8")
    done = copy.run("update", "--yes")
    assert (done.returncode, copy.version()) == (0, NEW), done.stderr


# What is only told


def test_an_editable_copy(copy: Copy, shelf: Shelf, tmp_path: Path) -> None:
    source = tmp_path / "source tree"
    source.mkdir()
    build(source, OLD, shelf.index.repository)
    venv = tmp_path / "editable"
    copy.do(copy.kars.with_name("python"), "-m", "venv", venv)
    copy.do(venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "-e", source)
    # The dependencies are those of the other copy.
    libraries = next((copy.kars.parents[1] / "lib").glob("python*/site-packages"))
    [own] = (venv / "lib").glob("python*/site-packages")
    (own / "others.pth").write_text(f"{libraries}\n", "utf-8")
    copy.kars = venv / "bin" / "kars"
    shown = copy.show("update")
    assert shown.status == 1
    assert shown.lines[-1] == (
        f"This copy runs from '{source}'; update that, for example with git pull"
    )


def test_a_copy_of_the_systems_python(copy: Copy, tmp_path: Path) -> None:
    # As `pip install --user` or a package of the system leaves it: not in an environment.
    libraries = next((copy.kars.parents[1] / "lib").glob("python*/site-packages"))
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
    done = subprocess.run(
        [base, "-P", "-m", "kars_router", "update", "--yes"],
        env={**copy.variables, "PYTHONPATH": str(libraries)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith(f"-P -m pip install kars-router=={NEW}")
    assert done.stderr.startswith("kars: nothing was installed; update with: ")
    assert copy.version() == OLD
