"""One GET, against servers that mean no good."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from http_kit import Authority
from index_kit import NO_PROXY, Raw, serve_index, serve_raw

from kars_router.update.fetch import Answer, Client, FetchError
from kars_router.update.settings import Wire

SMALL = 100_000


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_PROXY.items():
        monkeypatch.setenv(name, value)


def client(seconds: float = 10, longest: int = SMALL, wire: Wire | None = None) -> Client:
    return Client(wire or Wire(), deadline=time.monotonic() + seconds, longest=longest)


def get(url: str, login: tuple[str, str] | None = None, wire: Wire | None = None) -> Answer:
    return client(wire=wire).get(url, accept="text/x", login=login)


def refusal(url: str, wire: Wire | None = None, seconds: float = 10) -> str:
    with pytest.raises(FetchError) as caught:
        client(seconds, wire=wire).get(url, accept="text/x")
    return str(caught.value)


def test_a_page_and_what_was_asked() -> None:
    with serve_index("kars_router-1.0.tar.gz") as index:
        answer = get(f"{index.simple}/kars-router/", login=("us er", "p:\N{POUND SIGN}"))
    assert b"kars_router-1.0.tar.gz" in answer.body
    assert answer.content_type == "application/vnd.pypi.simple.v1+json"
    [asked] = index.asked
    assert asked.login == "us er:p:\N{POUND SIGN}"
    assert asked.headers["accept"] == "text/x"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["user-agent"].startswith("kars-router/")


def test_a_status_that_is_not_wanted() -> None:
    with serve_index() as index:
        with pytest.raises(FetchError, match="answered with status 404") as caught:
            get(f"{index.url}/nothing")
        assert caught.value.status == 404
        index.login = "u:p"
        assert "status 401" in refusal(index.url)


# Redirects


def test_a_redirect_on_the_same_server_is_followed_with_the_login() -> None:
    with serve_index("kars_router-1.0.tar.gz") as index:
        index.login = "u:p"
        index.redirects = {"/a": "/b?c=d", "/b?c=d": f"{index.url}/simple/kars-router/"}
        assert get(f"{index.url}/a", login=("u", "p")).body
    assert [each.login for each in index.asked] == ["u:p"] * 3


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "data:text/html,x",
        "gopher://127.0.0.1:70/",
        "https://[x/",
        "https://user:secret@h.test/",
        "https://h.test/a b",
        "https://h\N{FULLWIDTH FULL STOP}test/",
        "https://h.test:99999/",
        "javascript:alert(1)",
    ],
)
def test_a_redirect_to_what_is_no_web_address(location: str) -> None:
    def script(raw: Raw) -> None:
        raw.request()
        raw.send("HTTP/1.1 302 Found", f"Location: {location}", "Content-Length: 0")

    with serve_raw(script) as url:
        assert refusal(url) == "redirects to something that is no web address"


def test_a_redirect_to_another_host_without_tls() -> None:
    with serve_index() as index:
        index.redirects = {"/a": "http://169.254.169.254/latest/meta-data"}
        assert refusal(f"{index.url}/a") == "redirects to where there is no TLS"
        # Whatever trust there is in this one does not extend to that one.
        wire = Wire(plain=True, trusted=frozenset({"127.0.0.1", "169.254.169.254"}))
        assert refusal(f"{index.url}/a", wire) == "redirects to where there is no TLS"


def test_a_redirect_to_another_port_is_another_server() -> None:
    with serve_index("kars_router-1.0.tar.gz") as other, serve_index() as index:
        index.redirects = {"/a": f"{other.simple}/kars-router/"}
        assert get(f"{index.url}/a", login=("u", "p")).body
    assert index.asked[0].login == "u:p"
    assert "authorization" not in other.asked[0].headers


def test_redirects_without_an_end() -> None:
    with serve_index() as index:
        index.redirects = {"/a": "/b", "/b": "/a"}
        assert refusal(f"{index.url}/a") == "redirects without an end"
    assert len(index.asked) == 5


def test_a_redirect_without_a_target() -> None:
    def script(raw: Raw) -> None:
        raw.request()
        raw.send("HTTP/1.1 302 Found", "Content-Length: 0")

    with serve_raw(script) as url:
        assert refusal(url) == "answered with status 302"


# Bodies and heads


def endless(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", "Content-Type: text/html")
    raw.pour(b"x" * 65_536)


def endless_chunks(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")
    raw.pour(b"4\r\nxxxx\r\n" * 1000)


def enormous(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", f"Content-Length: {10**15}")
    raw.pour(b"x" * 65_536)


def packed(raw: Raw) -> None:
    raw.request()
    bomb = gzip.compress(b"\0" * 10_000_000)
    raw.send("HTTP/1.1 200 OK", "Content-Encoding: gzip", f"Content-Length: {len(bomb)}", body=bomb)


def cut_short(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", "Content-Length: 100", body=b"short")


def cut_in_a_chunk(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"10\r\nshort")


def no_chunks(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", body=b"zz\r\n")


def many_headers(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", *(f"X-{number}: x" for number in range(1000)))


def long_header(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", "X: " + "x" * 1_000_000)


def no_http(raw: Raw) -> None:
    raw.request()
    raw.socket.sendall(b"SSH-2.0-server\r\n")


def nothing(raw: Raw) -> None:
    raw.request()


def silent(raw: Raw) -> None:
    raw.request()
    raw.stop.wait(10)


def dripping_body(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK")
    raw.drip(b"x", 0.05)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (endless, "sent more than 97 KiB"),
        (endless_chunks, "sent more than 97 KiB"),
        (enormous, "sent more than 97 KiB"),
        (packed, "packed its answer, though asked not to"),
        (cut_short, "ended its answer halfway through"),
        (cut_in_a_chunk, "does not speak HTTP as it should"),
        (no_chunks, "does not speak HTTP as it should"),
        (many_headers, "does not speak HTTP as it should"),
        (long_header, "does not speak HTTP as it should"),
        (no_http, "does not speak HTTP as it should"),
        (nothing, "cannot be reached|does not speak HTTP as it should"),
        (silent, "did not answer in time"),
        (dripping_body, "did not answer in time"),
    ],
)
def test_servers_that_misbehave(script: Callable[[Raw], None], said: str) -> None:
    began = time.monotonic()
    with serve_raw(script) as url:
        assert refusal(url, seconds=0.6) in said.split("|")
        assert time.monotonic() - began < 5


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert refusal(f"http://127.0.0.1:{port}/") == "cannot be reached: Connection refused"


def test_a_name_that_nobody_has() -> None:
    assert refusal("https://nobody.invalid/") == "has a name that cannot be resolved"
    assert refusal(f"https://{'x' * 70}.invalid/") == "does not speak HTTP as it should"


def test_nothing_is_begun_after_the_deadline() -> None:
    with serve_index() as index:
        assert refusal(index.url, seconds=-1) == "did not answer in time"
    assert index.asked == []


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


@pytest.fixture
def tls(authority: Authority) -> Iterator[str]:
    context = authority.server_context("127.0.0.1")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(65_536)
                        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}/"
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def test_certificates(tls: str, authority: Authority, tmp_path: Path) -> None:
    assert refusal(tls) == "has a certificate that is not trusted"
    authorities, own = str(authority.ca_file), str(tmp_path / "127.0.0.1.pem")
    assert get(tls, wire=Wire(ca_file=authorities)).body == b"ok"
    assert get(tls, wire=Wire(ca_file=authorities, client_cert=own)).body == b"ok"
    assert get(tls, wire=Wire(trusted=frozenset({"127.0.0.1"}))).body == b"ok"
    # A directory that is not indexed by hashes is as good as an empty one.
    assert refusal(tls, Wire(ca_file=str(tmp_path))) == "has a certificate that is not trusted"


def test_certificates_that_cannot_be_read(tls: str, tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("nothing", encoding="utf-8")
    for path in map(str, (tmp_path / "none.pem", tmp_path / "absent.pem")):
        for wire in (Wire(ca_file=path), Wire(client_cert=path)):
            said = refusal(tls, wire)
            assert said == "is not asked: the configured certificates cannot be read"


def test_tls_where_there_is_none() -> None:
    with serve_raw(lambda raw: raw.send("HTTP/1.1 400 Bad Request")) as url:
        said = refusal(url.replace("http:", "https:"))
    assert said in {
        "does not speak TLS as it should",
        "cannot be reached: Connection reset by peer",
    }


def test_without_tls_only_to_this_machine_or_where_the_user_says_so() -> None:
    # Were it asked, the name would not be found.
    refused = "is not spoken to without TLS, unless it is declared to be trusted"
    url = "http://nobody.invalid/"
    assert refusal(url) == refused
    for wire in (Wire(plain=True), Wire(trusted=frozenset({"nobody.invalid"}))):
        assert refusal(url, wire) == "has a name that cannot be resolved"


# Proxies


def test_a_proxy_is_used_and_gets_its_own_password(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []

    def script(raw: Raw) -> None:
        heads.append(raw.request().decode())
        raw.send("HTTP/1.1 200 OK", "Content-Length: 2", body=b"ok")

    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY")
    with serve_raw(script) as url:
        proxy = url.replace("//", "//user:secret@")
        wire = Wire(plain=True, proxy=proxy)
        assert get("http://index.invalid/simple/", wire=wire).body == b"ok"
        monkeypatch.setenv("http_proxy", url)
        assert get("http://index.invalid/simple/", wire=Wire(plain=True)).body == b"ok"
        monkeypatch.setenv("no_proxy", "index.invalid")
        said = refusal("http://index.invalid/simple/", Wire(plain=True))
    assert [head.split("\r\n")[0] for head in heads] == [
        "GET http://index.invalid/simple/ HTTP/1.1"
    ] * 2
    assert "Proxy-Authorization: Basic" in heads[0]
    assert "secret" not in said
