"""Which indexes are asked: what is configured, else what the installer says, and logins."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from attrs import evolve

from kars_router.errors import UndeterminedError
from kars_router.update import indexes
from kars_router.update.indexes import settings_of
from kars_router.update.installation import Installation, Manner
from kars_router.update.settings import Settings

LIMIT = 20.0
NOTHING = {"PIP_CONFIG_FILE": "/dev/null", "UV_NO_CONFIG": "1"}


@pytest.fixture
def by_pip(tmp_path: Path) -> Installation:
    return Installation(Manner.PIP, tmp_path, sys.executable)


@pytest.fixture
def by_uv(tmp_path: Path) -> Installation:
    return Installation(Manner.UV, tmp_path, sys.executable, uses_uv=True)


def ask(installation: Installation, home: Path, **variables: str) -> Settings:
    return settings_of(installation, {"HOME": str(home), **NOTHING, **variables}, LIMIT)


def program(path: Path, *lines: str) -> Path:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_each_installer_has_its_own_settings(
    by_pip: Installation, by_uv: Installation, tmp_path: Path
) -> None:
    both = {"PIP_INDEX_URL": "https://pip.test/", "UV_DEFAULT_INDEX": "https://uv.test/"}
    pipx = evolve(by_pip, manner=Manner.PIPX, arguments=("-i", "https://kept.test/"))
    found = [
        ask(installation, tmp_path, **both).indexes[0].url
        for installation in (
            by_pip,
            by_uv,
            evolve(by_uv, manner=Manner.UV_TOOL),
            evolve(by_uv, manner=Manner.PIPX),
            pipx,
            evolve(pipx, uses_uv=True),
        )
    ]
    pip, uv, kept = "https://pip.test/", "https://uv.test/", "https://kept.test/"
    assert found == [pip, uv, uv, uv, kept, kept]


def test_pip_itself_names_its_default_index(
    by_pip: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is only asked where nothing is configured, and its help would show what is.
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    [index] = ask(by_pip, tmp_path).indexes
    assert index.url.startswith("https://")
    # The same as what its help says, which is what is asked where the short way fails.
    [_, long_way] = indexes._questions(by_pip)
    slow = evolve(
        by_pip, python=str(program(tmp_path / "python", f'[ "$2" = -m ] && {long_way[0]} "$@"'))
    )
    assert ask(slow, tmp_path).indexes == (index,)


def test_the_default_is_added_to_extra_indexes(by_pip: Installation, tmp_path: Path) -> None:
    extra = "https://extra.test/"
    first, last = ask(by_pip, tmp_path, PIP_EXTRA_INDEX_URL=f"{extra} {extra}").indexes
    assert first.url == extra
    assert last.url != extra


def test_uv_names_its_default_index(
    by_uv: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    help_text = "The default package index (by default: <https://uv.test/simple>) [env: X]"
    program(tmp_path / "uv", f"echo '{help_text}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [index.url for index in ask(by_uv, tmp_path).indexes] == ["https://uv.test/simple"]


@pytest.mark.parametrize(
    "line",
    [
        "exit 1",
        "echo 'default: http://plain.test/simple'",
        "echo 'default: file:///x'",
        "echo 'default https'",
        "head -c 100000 /dev/urandom",
        "exec tail -f /dev/null",
    ],
)
def test_an_installer_that_says_nothing_of_use(
    line: str, by_pip: Installation, tmp_path: Path
) -> None:
    silent = evolve(by_pip, python=str(program(tmp_path / "python", line)))
    began = time.monotonic()
    with pytest.raises(UndeterminedError, match="does not name one"):
        settings_of(silent, {"HOME": str(tmp_path), **NOTHING}, 0.3)
    assert time.monotonic() - began < 5


def test_no_installer_at_all(by_uv: Installation, tmp_path: Path) -> None:
    nobody = evolve(by_uv, python=str(tmp_path / "absent"))
    with pytest.raises(UndeterminedError, match="does not name one"):
        ask(nobody, tmp_path)


# Logins


@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_logins_from_netrc(name: str, by_pip: Installation, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("machine i.test login me password secret\n", encoding="utf-8")
    path.chmod(0o600)
    variables = {"NETRC": str(path)} if name == "elsewhere" else {}
    urls = "https://i.test:8443/simple https://u:p@i.test/ https://other.test/"
    found = ask(
        by_pip, tmp_path, PIP_EXTRA_INDEX_URL=urls, PIP_INDEX_URL="https://x.test/", **variables
    )
    assert [index.login for index in found.indexes] == [
        None,
        ("me", "secret"),
        ("u", "p"),
        None,
    ]
    assert "secret" not in repr(found)


def test_a_login_for_all_others(by_pip: Installation, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("default login me password secret\n", encoding="utf-8")
    (tmp_path / ".netrc").chmod(0o600)
    [index] = ask(by_pip, tmp_path, PIP_INDEX_URL="https://i.test/").indexes
    assert index.login == ("me", "secret")


@pytest.mark.parametrize("content", [b"machine", b"\xff\xfe machine", b"nonsense here"])
def test_a_netrc_that_makes_no_sense(content: bytes, by_pip: Installation, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes(content)
    [index] = ask(by_pip, tmp_path, PIP_INDEX_URL="https://i.test/").indexes
    assert index.login is None
