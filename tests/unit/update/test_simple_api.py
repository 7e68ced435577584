"""Project pages of indexes: what is read from them, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_kit import JSON, File, Index

from kars_router.update import simple_api
from kars_router.update.simple_api import PageError, page_url, releases
from kars_router.update.versions import is_version

PYTHON = "3.11.7"


def wheel(version: str) -> str:
    return f"kars_router-{version}-py3-none-any.whl"


def offered(*files: File, speaks_json: bool = True) -> tuple[str, ...]:
    index = Index("http://127.0.0.1", files=list(files), speaks_json=speaks_json)
    status, headers, body = index._page("kars-router")
    assert status == 200
    return releases(headers["content-type"], body, "kars-router", PYTHON)


def page(*files: Any, **more: Any) -> bytes:
    return json.dumps({"meta": {"api-version": "1.0"}, "files": files, **more}).encode()


BOTH = pytest.mark.parametrize("speaks_json", [True, False], ids=["json", "html"])


@BOTH
def test_versions_come_in_their_order_and_once(speaks_json: bool) -> None:
    files = [File(wheel(each)) for each in ("0.10.0", "0.2.0", "0.9.0")]
    files.append(File("kars_router-0.2.0.tar.gz"))
    assert offered(*files, speaks_json=speaks_json) == ("0.2.0", "0.9.0", "0.10.0")


@BOTH
@pytest.mark.parametrize(
    "file",
    [
        File(wheel("0.3.0rc1")),
        File(wheel("0.3.0.dev1")),
        File(wheel("0.3.0+local")),
        File(wheel("0.3.0"), yanked=True),
        File(wheel("0.3.0"), yanked="broken on Tuesdays"),
        File(wheel("0.3.0"), requires_python=">=3.12"),
        File(wheel("0.3.0"), requires_python="!!!"),
        File("kars_router-0.3.0.exe"),
        File("kars_router-0.3.0.tar.gz.asc"),
        File("kars_router_extras-0.3.0-py3-none-any.whl"),
        File("kars_router-not.a.version-py3-none-any.whl"),
        File("kars_router-0.3.0-py3.whl"),
        File(f"kars_router-{'9' * 5000}.tar.gz"),
        File(f"kars_router-0.{'9' * 100}.tar.gz"),
        File("--help.tar.gz"),
        File(""),
    ],
    ids=lambda file: repr(file.name[:40]),
)
def test_what_is_not_for_installing_is_skipped(file: File, speaks_json: bool) -> None:
    assert offered(File(wheel("0.2.0")), file, speaks_json=speaks_json) == ("0.2.0",)


@BOTH
def test_a_release_counts_if_one_of_its_files_does(speaks_json: bool) -> None:
    files = [
        File(wheel("0.3.0"), yanked=True),
        File("kars_router-0.3.0.tar.gz", requires_python=">=3.11, <4"),
    ]
    assert offered(*files, speaks_json=speaks_json) == ("0.3.0",)


@pytest.mark.parametrize(
    ("yanked", "counts"), [(False, True), ("", True), (None, True), ("x", False)]
)
def test_yanked_in_json(yanked: object, counts: bool) -> None:
    body = page({"filename": wheel("1.0"), "yanked": yanked})
    assert releases(JSON, body, "kars-router", PYTHON) == (("1.0",) if counts else ())


def test_an_attribute_without_a_value_is_yanked_too() -> None:
    body = f'<a href="/x/{wheel("1.0")}#sha256=ab" data-yanked>x</a>'.encode()
    assert releases("text/html", body, "kars-router", PYTHON) == ()


def test_links_that_are_no_urls_and_names_that_are_encoded() -> None:
    body = (
        f'<a>no link</a><a href="http://[">bad</a><a href="{wheel("1%2E0")}?x=1">encoded</a>'
        f'<A HREF="../../{wheel("1.1")}">upper</A>'
    ).encode()
    assert releases("text/html", body, "kars-router", PYTHON) == ("1.0", "1.1")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b""),
        (JSON, b"[]"),
        (JSON, b'{"files": []}'),
        (JSON, b'{"meta": {}, "files": [1]}'),
        (JSON, b'{"meta": {}, "files": [{"filename": 1}]}'),
        (JSON, b'{"meta": {}, "files": [{"filename": "a", "yanked": 3}]}'),
        (JSON, b'{"meta": {"api-version": "2.0"}, "files": []}'),
        (JSON, b'{"meta": {"api-version": "x"}, "files": []}'),
        (JSON, b"[" * 200_000),
        (JSON, b'{"meta": {}, "files": [], "x": ' + b"[" * 200_000),
        (JSON, b'{"meta": {}, "files": [{"filename": "\xff\xfe"}]}'),
        ("text/html", b"\xff\xfe<a>"),
        ("text/plain", b"{}"),
        ("", b""),
        ("application/zip", b"PK"),
    ],
    ids=str,
)
def test_anything_else_is_no_page(content_type: str, body: bytes) -> None:
    with pytest.raises(PageError):
        releases(content_type, body, "kars-router", PYTHON)


@given(st.binary(max_size=300), st.sampled_from([JSON, "text/html"]))
def test_whatever_comes_ends_in_versions_or_in_one_error(body: bytes, kind: str) -> None:
    try:
        found = releases(kind, body, "kars-router", PYTHON)
    except PageError:
        return
    assert all(map(is_version, found))


@given(st.text(max_size=60))
def test_whatever_a_file_is_called(name: str) -> None:
    body = page({"filename": name}, {"filename": f"kars_router-{name}-py3-none-any.whl"})
    assert all(map(is_version, releases(JSON, body, "kars-router", PYTHON)))


def test_members_of_later_versions_of_the_api_are_passed_over() -> None:
    body = page({"filename": wheel("1.0"), "provenance": {"a": 1}}, meta={"api-version": "1.9"})
    assert releases(f"{JSON}; charset=utf-8", body, "kars-router", PYTHON) == ("1.0",)


@pytest.mark.parametrize(
    ("index", "project", "url"),
    [
        ("http://i/simple", "kars-router", "http://i/simple/kars-router/"),
        ("http://i/simple/", "Kars_.Router", "http://i/simple/kars-router/"),
        ("http://i", "a/../b c?d", "http://i/a%2F-%2Fb%20c%3Fd/"),
    ],
)
def test_urls_of_pages(index: str, project: str, url: str) -> None:
    assert page_url(index, project) == url


def test_json_is_preferred() -> None:
    assert simple_api.ACCEPT.startswith(f"{JSON},")
