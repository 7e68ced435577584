from __future__ import annotations

import pytest

from kars_router.config.addresses import (
    Address,
    hide_query,
    is_secure,
    parse_host,
    parse_listen,
    parse_origin,
    parse_url,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8443", Address("127.0.0.1", 8443)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("LocalHost:1", Address("localhost", 1)),
        ("[::1]:65535", Address("::1", 65_535)),
        ("unix:/run/kars/agent.sock", Address(path="/run/kars/agent.sock")),
    ],
)
def test_where_to_listen(text: str, address: Address) -> None:
    assert parse_listen(text) == address
    assert parse_listen(str(address)) == address


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "HOST:PORT"),
        ("8443", "HOST:PORT"),
        ("127.0.0.1", "HOST:PORT"),
        (":8443", "name the host"),
        ("127.0.0.1:", "port"),
        ("127.0.0.1:65536", "port"),
        ("127.0.0.1:-1", "port"),
        ("127.0.0.1:٨", "port"),
        ("127.0.0.1:8443 ", "port"),
        ("::1:8443", "brackets"),
        ("[127.0.0.1]:1", "IPv6"),
        ("[]:1", "IPv6"),
        ("300.1.1.1:1", "HOST:PORT"),
        ("1.2.3:1", "HOST:PORT"),
        ("a b:1", "HOST:PORT"),
        ("-a:1", "HOST:PORT"),
        ("*:8443", "HOST:PORT"),
        ("http://127.0.0.1:1", "brackets"),
        ("unix:", "absolute"),
        ("unix:run.sock", "absolute"),
        ("unix:/a\0b", "absolute"),
        (f"unix:/{'a' * 107}", "107 bytes"),
    ],
)
def test_where_nobody_can_listen(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_listen(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8931/mcp",
        "https://mcp.example",
        "https://mcp.example/mcp?region=eu",
        "http://[::1]:80/mcp",
        "http://playwright-mcp.kars-mcp.svc.cluster.local.:8931/mcp",
        "http://under_score:1/",
        "https://bücher.example/mcp",
        "https://BÜCHER。example./mcp",
        "http://[fe80::1%eth0]:80/mcp",
        "ws://h/mcp",
        "HTTP://h/mcp",
        "http://h/a@b",
    ],
)
def test_urls_of_servers(url: str) -> None:
    assert parse_url(url) == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "start with http"),
        ("/mcp", "start with http"),
        ("127.0.0.1:8931/mcp", "start with http"),
        ("ftp://h/", "start with http"),
        ("http:/h/mcp", "start with http"),
        ("http:h", "start with http"),
        ("http://", "name a host"),
        ("http:///mcp", "name a host"),
        ("http://:80/mcp", "name a host"),
        ("http://a..b/", "name a host"),
        ("http://1.2.3/", "name a host"),
        ("http://h:0/", "1 to 65535"),
        ("http://h:/", "1 to 65535"),
        ("http://h:65536/", "1 to 65535"),
        ("http://h:port/", "1 to 65535"),
        ("http://[::1/", "host or its port"),
        ("http://[v1.x]/", "host"),
        ("http://a[::1]/", "name a host"),
        ("http://[::1]a/", "name a host"),
        ("http://[::1]1:80/", "name a host"),
        # What nobody could look up, and addresses that do not look like any.
        ("http://\uff11\uff12\uff17.0.0.1/", "name a host"),
        ("http://127。0。0。1/", "name a host"),
        ("http://a.①/", "name a host"),
        (f"http://{'é' * 70}/", "name a host"),
        (f"http://h/{'a' * 8192}", "longer than 8192"),
        ("http://user:secret@h/", "bearerFromEnv"),
        ("http://secret@h/", "bearerFromEnv"),
        ("http://@h/", "bearerFromEnv"),
        ("http://h/mcp#", "fragment"),
        ("http://h/mcp#part", "fragment"),
        ("http://h/a b", "spaces"),
        ("http://h/\r\nHost: x", "spaces"),
        ("http://h\\@evil/", "backslashes"),
    ],
)
def test_urls_that_are_refused_without_being_repeated(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "localhost.", "a.LOCALHOST", "127.0.0.9", "[::1]"])
def test_what_is_said_without_tls_to_this_machine_is_safe(host: str) -> None:
    assert is_secure(f"http://{host}:80/keys")


@pytest.mark.parametrize("host", ["h", "localhost.example", "10.0.0.1", "127.0.0.1.example"])
def test_what_is_said_without_tls_to_others_is_not_safe(host: str) -> None:
    assert not is_secure(f"http://{host}/keys")
    assert is_secure(f"https://{host}/keys")


def test_queries_are_hidden() -> None:
    assert hide_query("https://h/mcp?key=secret&x=1") == "https://h/mcp?..."
    assert hide_query("https://h/mcp") == "https://h/mcp"


@pytest.mark.parametrize(
    "host", ["router.example", "router.example:8443", "10.0.0.1", "[::1]", "[::1]:1"]
)
def test_hosts(host: str) -> None:
    assert parse_host(host.upper()) == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        "*",
        "*.example",
        "a:",
        "a:b:1",
        "::1",
        "http://a",
        "a/b",
        "a:99999",
        "[x]",
        "[::1]x",
        "1.2.3",
    ],
)
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_host(host)


def test_origins() -> None:
    assert parse_origin("HTTPS://UI.example:8000") == "https://ui.example:8000"
    assert parse_origin("vscode-webview://abc") == "vscode-webview://abc"


@pytest.mark.parametrize(
    "origin",
    ["", "null", "*", "ui.example", "https://", "https://*", "https://a/", "https://a/b", "://a"],
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_origin(origin)
