"""Release notes: where they are, and what is told of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.update import changelog
from kars_router.update.changelog import Place, summaries, summary


@pytest.mark.parametrize(
    ("urls", "page", "api"),
    [
        ([], "", ""),
        (
            ["Repository, https://github.com/o/r"],
            "https://github.com/o/r",
            "https://api.github.com/repos/o/r/releases",
        ),
        (
            ["Source, https://github.com/o/r.git", "Changelog, https://docs.test/changes.html"],
            "https://docs.test/changes.html",
            "https://api.github.com/repos/o/r/releases",
        ),
        (
            ["Homepage, https://home.test", "Release Notes, https://git.test/o/r/releases"],
            "https://git.test/o/r/releases",
            "https://git.test/api/v3/repos/o/r/releases",
        ),
        (
            ["What's New, https://www.github.com/o/r/blob/main/CHANGELOG.md"],
            "https://www.github.com/o/r/blob/main/CHANGELOG.md",
            "https://api.github.com/repos/o/r/releases",
        ),
        (
            ["Changelog, http://127.0.0.1:99/o/r/"],
            *["http://127.0.0.1:99/o/r/"],
            "http://127.0.0.1:99/api/v3/repos/o/r/releases",
        ),
        (["Issues, https://github.com/o/r/issues"], "", ""),
        (["Source, https://github.com/o"], "https://github.com/o", ""),
        (["Source, https://github.com/o/r/wiki"], "https://github.com/o/r/wiki", ""),
        (["Source, https://github.com/../r"], "https://github.com/../r", ""),
        (["Source, https://github.com/o/r%2F..%2Fx"], "https://github.com/o/r%2F..%2Fx", ""),
        (["Source, https://user:secret@github.com/o/r"], "", ""),
        (["Source, ftp://github.com/o/r"], "", ""),
        (["Source, file:///etc/passwd"], "", ""),
        (["Source, https://"], "", ""),
        (["Source, https://[x/o/r"], "", ""),
        (["Source, https://github.com/o/r\x1b[31m"], "", ""),
        (["Source, https://github.com/o/r\N{RIGHT-TO-LEFT OVERRIDE}"], "", ""),
        (["Source, https://github.com/o/r and more"], "", ""),
        (["no comma"], "", ""),
    ],
)
def test_where_notes_are(urls: list[str], page: str, api: str) -> None:
    assert changelog.place(urls) == Place(page, api)


def test_addresses_of_notes() -> None:
    place = Place("", "https://h/repos/o/r/releases")
    assert place.one("1.0") == "https://h/repos/o/r/releases/tags/v1.0"
    assert place.one("1/../2 ?#") == "https://h/repos/o/r/releases/tags/v1%2F..%2F2%20%3F%23"
    assert place.several() == "https://h/repos/o/r/releases?per_page=50"


@pytest.mark.parametrize(
    ("title", "body", "line"),
    [
        ("kars 0.2.0 \N{EM DASH} sessions survive restarts", "text", "sessions survive restarts"),
        ("v0.2.0 - faster starts", "", "faster starts"),
        ("0.2.0: faster starts", "", "faster starts"),
        ("Faster starts", "", "Faster starts"),
        ("kars-router 0.2.0", "Sessions survive.", "Sessions survive."),
        ("v0.2.0", "## 0.2.0 (2026-01-01)\n\n### Features\n\n- Calls **wait**.", "Calls wait."),
        ("", "<!-- generated -->\n\nkars 0.2.0\n\n* [Calls](https://x/y) wait.", "Calls wait."),
        ("", "![logo](https://x/y.png)\n---\n| a | b |\n1. A `list` item", "A list item"),
        ("", "<b>Bold</b> _claims_ about snake_case_names", "Bold claims about snake_case_names"),
        ("", "> quoted words here", "quoted words here"),
        ("", "```\ncode of some kind\n```", "code of some kind"),
        ("", "short\n\nlong enough", "long enough"),
        ("", "", ""),
        ("", "# Only\n# Headings", ""),
        ("Title\x1b]0;evil\x07 of \N{RIGHT-TO-LEFT OVERRIDE}text", "", "Title]0;evil of text"),
        ("", "x" * 300, "x" * 99 + "…"),
        ("", "\n" * 1000 + "too far down", ""),
    ],
)
def test_notes_in_one_line(title: str, body: str, line: str) -> None:
    assert summary("0.2.0", title, body) == line


def release(tag: object, **more: Any) -> dict[str, Any]:
    return {"tag_name": tag, "name": None, "body": "Something is new.", **more}


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("v0.2.0", "0.2.0"),
        ("0.2.0", "0.2.0"),
        ("kars-router-0.2.0", "0.2.0"),
        ("kars-router/v0.2.0", "0.2.0"),
        ("kars_router@0.2.0", "0.2.0"),
    ],
)
def test_tags(tag: str, version: str) -> None:
    assert summaries(json.dumps(release(tag)).encode()) == {version: "Something is new."}


@pytest.mark.parametrize("tag", ["", "latest", "v0.2.0/../..", "v0.2.0\n", "x" * 10_000, "v0.02"])
def test_tags_without_a_version(tag: str) -> None:
    assert summaries(json.dumps([release(tag)]).encode()) == {}


def test_several_releases() -> None:
    body = json.dumps(
        [
            release("v0.3.0", draft=True),
            release("v0.2.0", body=None, name="0.2.0, the quick one"),
            release("v0.2.0", body="Said again, later."),
            release("v0.1.0", body=None),
        ]
    ).encode()
    assert summaries(body) == {"0.2.0": "the quick one", "0.1.0": ""}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b'{"message": "API rate limit exceeded"}',
        b"[1]",
        b'[{"tag_name": 1}]',
        b"[" * 200_000,
        b'{"tag_name": "v1", "body": "\xff"}',
        b"<html>",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_answers_that_say_nothing(body: bytes) -> None:
    assert summaries(body) == {}


@given(st.text(max_size=300), st.text(max_size=600))
def test_whatever_is_written_ends_in_one_line(title: str, body: str) -> None:
    line = summary("0.2.0", title, body)
    assert len(line) <= 100
    assert line.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        "[" * 1_000_000,
        "![a](" * 200_000,
        "<a" * 500_000,
        "*" * 1_000_000,
        "_a" * 500_000,
        "> " * 500_000,
    ],
    ids=lambda body: body[:5],
)
def test_floods_of_markup_take_no_time(body: str) -> None:
    assert len(summary("0.2.0", body, body)) <= 100
