"""What pip would go by. tests/update has pip itself read the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kars_router.errors import UndeterminedError
from kars_router.update import pip_settings
from kars_router.update.settings import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # What this machine is set to is of no interest here.
    monkeypatch.setattr(pip_settings, "_SYSTEM", tmp_path / "nothing")
    place = tmp_path / "home"
    (place / ".config" / "pip").mkdir(parents=True)
    (place / ".pip").mkdir()
    (tmp_path / "xdg" / "pip").mkdir(parents=True)
    (tmp_path / "prefix").mkdir()
    return place


def environ(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(home), "XDG_CONFIG_DIRS": str(home.parent / "xdg"), **more}


def read(home: Path, *arguments: str, **more: str) -> Settings:
    return pip_settings.read(environ(home, **more), home.parent / "prefix", "linux", arguments)


def urls(settings: Settings) -> list[str]:
    return [index.url for index in settings.indexes]


FILES = {
    "global": "xdg/pip/pip.conf",
    "legacy": "home/.pip/pip.conf",
    "user": "home/.config/pip/pip.conf",
    "site": "prefix/pip.conf",
    "named": "named.conf",
}


def write(home: Path, which: str, text: str) -> Path:
    path = home.parent / FILES[which]
    path.write_text(text, encoding="utf-8")
    return path


def index(name: str) -> str:
    return f"https://{name}.test/simple"


def section(name: str, url: str) -> str:
    return f"[{name}]\nindex-url = {url}\n"


ALL = [*FILES]


@pytest.mark.parametrize("strongest", range(1, 6))
def test_of_several_files_the_strongest_counts(home: Path, strongest: int) -> None:
    for name in ALL[:strongest]:
        write(home, name, section("global", index(name)))
    more = {"PIP_CONFIG_FILE": str(home.parent / "named.conf")} if strongest == 5 else {}
    assert urls(read(home, **more)) == [index(ALL[strongest - 1])]


def test_a_named_file_takes_the_place_of_the_users(home: Path) -> None:
    write(home, "user", "[global]\nextra-index-url = https://user.test/\n")
    named = write(home, "named", section("global", index("named")))
    assert urls(read(home, PIP_CONFIG_FILE=str(named))) == [index("named")]
    assert urls(read(home, PIP_CONFIG_FILE="/not/there")) == ["https://user.test/"]


def test_no_files_at_all(home: Path) -> None:
    write(home, "user", section("global", index("user")))
    settings = read(home, PIP_CONFIG_FILE=os.devnull)
    assert settings == Settings(wants_default=True)


def test_installing_goes_above_everything_in_general(home: Path) -> None:
    write(home, "user", section("install", index("install")))
    write(home, "site", section("global", index("site")))
    assert urls(read(home)) == [index("install")]
    assert urls(read(home, PIP_INDEX_URL=index("variable"))) == [index("variable")]
    assert urls(read(home, "-i", index("given"), PIP_INDEX_URL=index("v"))) == [index("given")]


def test_extra_indexes(home: Path) -> None:
    write(home, "user", "[global]\nextra-index-url =\n  https://a.test/\n  https://b.test/\n")
    settings = read(home, "--extra-index-url=https://c.test/", "--quiet")
    assert urls(settings) == ["https://a.test/", "https://b.test/", "https://c.test/"]
    assert settings.wants_default
    settings = read(home, PIP_INDEX_URL=index("x"), PIP_EXTRA_INDEX_URL="https://d.test/")
    assert urls(settings) == [index("x"), "https://d.test/"]
    assert not settings.wants_default


def test_the_way_there(home: Path) -> None:
    write(
        home,
        "user",
        "[global]\ncert = ~/ca.pem\nproxy = http://u:p@proxy:1\n"
        "trusted_host = A.test\n  b.test:1\n",
    )
    wire = read(home, "--trusted-host", "c.test", PIP_CLIENT_CERT="/me.pem").wire
    assert wire.ca_file == f"{home}/ca.pem"
    assert wire.client_cert == "/me.pem"
    assert wire.proxy == "http://u:p@proxy:1"
    assert wire.trusted == {"a.test", "b.test:1", "c.test"}
    assert not wire.plain


def test_the_bundle_of_the_library_inside_pip(home: Path) -> None:
    assert read(home, CURL_CA_BUNDLE="/c", REQUESTS_CA_BUNDLE="/r").wire.ca_file == "/r"
    assert read(home, CURL_CA_BUNDLE="/c").wire.ca_file == "/c"
    assert read(home, CURL_CA_BUNDLE="/c", PIP_CERT="/p").wire.ca_file == "/p"


@pytest.mark.parametrize("word", ["1", "true", "Yes", "on"])
def test_no_index_may_be_used(home: Path, word: str) -> None:
    with pytest.raises(UndeterminedError, match="no index"):
        read(home, PIP_NO_INDEX=word)
    with pytest.raises(UndeterminedError, match="no index"):
        read(home, "--no-index")
    assert read(home, PIP_NO_INDEX="0").wants_default


@pytest.mark.parametrize(
    "text", ["no section", "[global", "[global]\nindex-url = a\nindex-url = b"]
)
def test_a_file_that_pip_could_not_read_either(home: Path, text: str) -> None:
    path = write(home, "user", text)
    with pytest.raises(UndeterminedError, match=re.escape(f"{path} cannot be read")):
        read(home)


def test_a_file_in_another_encoding(home: Path) -> None:
    write(home, "user", "").write_bytes(b"[global]\nindex-url = \xff\xfe\n")
    with pytest.raises(UndeterminedError):
        read(home)


def test_arguments_that_make_no_sense(home: Path) -> None:
    with pytest.raises(UndeterminedError, match="make no sense"):
        read(home, "--index-url")


def test_where_files_are_on_a_mac(home: Path) -> None:
    support = home / "Library" / "Application Support" / "pip"

    def files() -> list[Path]:
        return list(pip_settings.files(environ(home), home.parent / "prefix", "darwin"))

    assert files()[0] == Path("/Library/Application Support/pip/pip.conf")
    assert files()[-2] == home / ".config" / "pip" / "pip.conf"
    support.mkdir(parents=True)
    assert files()[-2] == support / "pip.conf"
