"""What uv would go by. tests/update compares some of it with what uv does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kars_router.errors import UndeterminedError
from kars_router.update import uv_settings
from kars_router.update.settings import Settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    (place / ".config" / "uv").mkdir(parents=True)
    (tmp_path / "xdg" / "uv").mkdir(parents=True)
    (tmp_path / "project" / ".venv").mkdir(parents=True)
    return place


def read(home: Path, variables: dict[str, str] | None = None, **how: Any) -> Settings:
    environ = {"HOME": str(home), "XDG_CONFIG_DIRS": str(home.parent / "xdg"), **(variables or {})}
    return uv_settings.read(environ, **how)


def urls(settings: Settings) -> list[str]:
    return [index.url.removeprefix("https://").removesuffix(".test/") for index in settings.indexes]


def url(name: str) -> str:
    return f"https://{name}.test/"


def index(host: str, **more: Any) -> str:
    lines = [f'url = "{url(host)}"', *(f"{key} = {value}" for key, value in more.items())]
    return "[[index]]\n" + "\n".join(lines) + "\n"


def user(home: Path, text: str) -> None:
    (home / ".config" / "uv" / "uv.toml").write_text(text, encoding="utf-8")


def shared(home: Path, text: str) -> None:
    (home.parent / "xdg" / "uv" / "uv.toml").write_text(text, encoding="utf-8")


def test_nothing_is_configured(home: Path) -> None:
    settings = read(home)
    assert settings.indexes == ()
    assert settings.wants_default
    assert settings.first_only
    assert settings.wire.plain


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"UV_DEFAULT_INDEX": url("a")}, ["a"]),
        ({"UV_INDEX_URL": url("a")}, ["a"]),
        ({"UV_INDEX_URL": url("a"), "UV_DEFAULT_INDEX": url("b")}, ["b"]),
        ({"UV_DEFAULT_INDEX": url("a"), "UV_INDEX": f"{url('b')} {url('c')}"}, ["b", "c", "a"]),
        ({"UV_INDEX": f"named={url('b')}", "UV_INDEX_URL": url("a")}, ["b", "a"]),
        ({"UV_INDEX_URL": url("a"), "UV_EXTRA_INDEX_URL": url("b")}, ["b", "a"]),
        ({"UV_DEFAULT_INDEX": url("a"), "UV_INDEX": url("a")}, ["a"]),
        ({"UV_DEFAULT_INDEX": ""}, []),
        ({"PIP_INDEX_URL": url("a")}, []),
    ],
)
def test_variables(home: Path, variables: dict[str, str], found: list[str]) -> None:
    assert urls(read(home, variables)) == found


def test_files_from_the_strongest_to_the_weakest(home: Path) -> None:
    project = home.parent / "project"
    shared(home, index("shared", default="true"))
    assert urls(read(home)) == ["shared"]
    user(home, index("user", default="true"))
    assert urls(read(home)) == ["user"]
    (project / "uv.toml").write_text(index("project", default="true"), encoding="utf-8")
    assert urls(read(home)) == ["user"]
    assert urls(read(home, project=project / ".venv")) == ["project"]
    receipt = home / "uv-receipt.toml"
    receipt.write_text(
        f'[tool.options]\nindex = [{{url = "{url("kept")}", default = true}}]\n', encoding="utf-8"
    )
    assert urls(read(home, receipt=receipt)) == ["kept"]
    variables = {"UV_DEFAULT_INDEX": url("variable")}
    assert urls(read(home, variables, receipt=receipt)) == ["variable"]
    given = {"index-url": url("given"), "extra-index-url": url("more")}
    assert urls(read(home, variables, arguments=given)) == ["more", "given"]


def test_indexes_of_several_places_add_up_and_the_default_comes_last(home: Path) -> None:
    user(home, index("u") + index("d", default="true") + index("hidden", explicit="true"))
    shared(home, 'extra-index-url = ["https://s.test/"]\nindex-url = "https://x.test/"\n')
    assert urls(read(home, {"UV_INDEX": url("v")})) == ["v", "u", "s", "d"]


def test_a_projects_settings_in_its_pyproject(home: Path) -> None:
    project = home.parent / "project"
    (project / "pyproject.toml").write_text(
        f'[[tool.uv.index]]\nurl = "{url("p")}"\ndefault = true\n', encoding="utf-8"
    )
    assert urls(read(home, project=project / ".venv")) == ["p"]
    (project / ".venv" / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    assert urls(read(home, project=project / ".venv")) == ["p"]


def test_the_table_of_uv_pip(home: Path) -> None:
    user(home, f'index-url = "{url("all")}"\n[pip]\nindex-url = "{url("pip")}"\n')
    assert urls(read(home)) == ["all"]
    assert urls(read(home, pip_table=True)) == ["pip"]


def test_a_named_file_or_none_at_all(home: Path) -> None:
    user(home, index("user", default="true"))
    named = home / "named.toml"
    named.write_text(index("named", default="true"), encoding="utf-8")
    assert urls(read(home, {"UV_CONFIG_FILE": str(named)})) == ["named"]
    assert urls(read(home, {"UV_NO_CONFIG": "true"})) == []


def test_logins_for_named_indexes(home: Path) -> None:
    user(home, index("i", name='"my-index.1"', default="true"))
    variables = {"UV_INDEX_MY_INDEX_1_USERNAME": "u", "UV_INDEX_MY_INDEX_1_PASSWORD": "p"}
    [found] = read(home, variables).indexes
    assert found.login == ("u", "p")
    [found] = read(home, {"UV_INDEX_MY_INDEX_1_PASSWORD": "p"}).indexes
    assert found.login == ("", "p")
    [found] = read(home, {"UV_INDEX_OTHER_PASSWORD": "p"}).indexes
    assert found.login is None


def test_the_way_there(home: Path) -> None:
    user(home, 'allow-insecure-host = ["A.test"]\nindex-strategy = "unsafe-best-match"\n')
    settings = read(home, {"UV_INSECURE_HOST": "b.test:1"}, arguments={"trusted-host": "c.test"})
    assert settings.wire.trusted == {"a.test", "b.test:1", "c.test"}
    assert not settings.first_only
    assert read(home, {"UV_INDEX_STRATEGY": "first-index"}).first_only


@pytest.mark.parametrize(
    ("variables", "text", "said"),
    [
        ({"UV_NO_INDEX": "1"}, "", "no index"),
        ({"UV_OFFLINE": "true"}, "", "offline"),
        ({}, "no-index = true", "no index"),
        ({}, "offline = true", "offline"),
        ({}, "no toml", "cannot be read"),
        ({}, "a = " + "[" * 100_000, "cannot be read"),
        ({"UV_DEFAULT_INDEX": "./wheels"}, "", "not at an http"),
        ({"UV_DEFAULT_INDEX": "file:///srv"}, "", "not at an http"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_no_index_can_be_asked(home: Path, variables: dict[str, str], text: str, said: str) -> None:
    user(home, text)
    with pytest.raises(UndeterminedError, match=said):
        read(home, variables)


@pytest.mark.parametrize(
    "text",
    [
        "index = 1",
        "index = [1]",
        "index = [{}]",
        "index = [{url = 1}]",
        "index-url = 1",
        "extra-index-url = [1]",
        "extra-index-url = 'x'",
        "pip = 1",
        "index-strategy = 1",
        "allow-insecure-host = 1",
    ],
)
def test_settings_of_another_type_are_left_to_uv_to_complain_about(home: Path, text: str) -> None:
    user(home, text)
    assert read(home, pip_table=True).indexes == ()


@pytest.mark.parametrize("text", ["", "tool = 1", "[tool]\noptions = 1"])
def test_a_receipt_without_options(home: Path, text: str) -> None:
    receipt = home / "uv-receipt.toml"
    assert read(home, receipt=receipt).wants_default
    receipt.write_text(text, encoding="utf-8")
    assert read(home, receipt=receipt).wants_default


@pytest.mark.parametrize("text", ["tool = 1", "[tool]\nuv = 1", "[tool.other]"])
def test_a_pyproject_without_settings_for_uv(home: Path, text: str) -> None:
    project = home.parent / "project"
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    assert read(home, project=project).wants_default
