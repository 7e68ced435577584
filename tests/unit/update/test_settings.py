"""URLs of indexes, and what is told of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.errors import UndeterminedError
from kars_router.update.settings import (
    Index,
    Wire,
    index_from,
    is_loopback,
    is_trusted,
    origin,
)


@pytest.mark.parametrize(
    ("text", "url", "login"),
    [
        ("https://i.test/simple", "https://i.test/simple", None),
        (" https://i.test/simple/\n", "https://i.test/simple/", None),
        ("https://i.test", "https://i.test/", None),
        ("HTTPS://I.Test:8443/Simple", "https://i.test:8443/Simple", None),
        ("http://[::1]:80/simple", "http://[::1]:80/simple", None),
        ("https://u:p@i.test/simple", "https://i.test/simple", ("u", "p")),
        ("https://u%40x:p%3A%2f@i.test/", "https://i.test/", ("u@x", "p:/")),
        ("https://token@i.test/", "https://i.test/", ("token", "")),
        ("https://:p@i.test/", "https://i.test/", ("", "p")),
    ],
)
def test_urls_are_taken_apart(text: str, url: str, login: tuple[str, str] | None) -> None:
    index = index_from(text)
    assert (index.url, index.login) == (url, login)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "simple",
        "file:///srv/secret",
        "/srv/secret",
        "git+https://secret@i.test/",
        "https://secret@",
        "https://u:secret@i.test/?q",
        "https://u:secret@i.test/#f",
        "https://u:secret@i.test:port/",
        "https://u:secret@i.test:99999/",
        "https://u:secret@[x/",
        "https://u:secret@i.test/a b",
        "https://u:secret@i.test/\x1b",
        "https://u:secret@i.test/\\x",
        "https://u:secret@i\N{FULLWIDTH FULL STOP}test/",
        "https://u:secret@i.test/\r\nHost: x",
    ],
)
def test_others_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UndeterminedError) as caught:
        index_from(text)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60).map("https://".__add__) | st.text(max_size=60))
def test_whatever_is_configured_ends_in_an_index_or_in_one_error(text: str) -> None:
    try:
        index = index_from(text)
    except UndeterminedError:
        return
    assert index.url.isascii()
    assert index.url.isprintable()
    assert "@" not in index.host
    origin(index.url)


def test_secrets_are_not_in_what_is_printed() -> None:
    index = index_from("https://user:secret@i.test/token/simple")
    shown = repr(index) + repr(Wire(proxy="http://user:secret@proxy/"))
    assert "secret" not in shown
    assert "token" not in shown
    assert index.host == "i.test"
    assert Index("https://i.test:1/x").host == "i.test:1"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("a.localhost", True),
        ("128.0.0.1", False),
        ("localhost.test", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://i.test/", True),
        ("http://i.test:8080/", True),
        ("https://[2001:db8::1]:1/", True),
        ("https://[2001:db8::1]:2/", False),
        ("https://x.i.test/", False),
        ("https://port.test:99/", True),
        ("https://port.test/", False),
    ],
)
def test_trusted_hosts(url: str, trusted: bool) -> None:
    hosts = frozenset({"i.test", "[2001:db8::1]:1", "port.test:99"})
    assert is_trusted(url, hosts) is trusted


@pytest.mark.parametrize("url", ["ftp://x/", "https://", "x", "https://x:port/"])
def test_no_origin(url: str) -> None:
    with pytest.raises(ValueError, match=r"not an http or https URL|Port could not be cast"):
        origin(url)
