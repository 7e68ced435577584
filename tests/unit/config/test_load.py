"""Files, flags and environment, laid over each other."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from kars_router.config.addresses import Address
from kars_router.config.load import Changes, build, changed_servers, default_path, load, parse
from kars_router.config.schema import Config
from kars_router.errors import ConfigError

ONE = "servers: {web: {url: 'http://127.0.0.1:1/mcp'}}\n"
HOME = {"HOME": "/home/kars"}
DURATION = "must be a duration such as 300ms, 5s, 1m30s, 1h or 7d"
NAME = "is not a server name: it takes 1 to 63 lower-case letters, digits or inner dashes"
NO_PASSWORD = "must not hold a user or a password; name the token with bearerFromEnv instead"


def refusal(
    text: str,
    *,
    upstreams: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, upstreams=upstreams, overrides=overrides, environ=environ)
    return caught.value.problems


def test_five_mistakes_in_one_file_are_five_lines_with_paths(tmp_path: Path) -> None:
    file = tmp_path / "kars.yaml"
    file.write_text(
        "listen: 8443\n"
        "servers:\n"
        "  playwright:\n"
        "    url: http://127.0.0.1:8931/mcp\n"
        '    allowedTools: ["browser_*", 5]\n'
        "    timeouts: {call: 5 minutes}\n"
        "  search:\n"
        "    bearerFromEnv: SEARCH_TOKEN\n"
        "    url: http://search.example/mcp\n"
        "reloaded: true\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert caught.value.source == str(file)
    assert caught.value.problems == (
        "listen: must be a string, not 8443",
        "servers.playwright.allowedTools[1]: must be a string, not 5",
        f"servers.playwright.timeouts.call: {DURATION}, not '5 minutes'",
        "servers.search.bearerFromEnv: the variable SEARCH_TOKEN is not set",
        "reloaded: is not a known key (did you mean 'reload'?)",
    )


def test_doubled_keys_are_reported_among_the_others() -> None:
    assert refusal("servers:\n  web:\n    url: http://h/\n    url: http://i/\nreload: 1\n") == (
        "servers.web.url: is given twice, on line 3 and line 4; keep one",
        "reload: must be true or false, not 1",
    )


def test_a_syntax_error_is_one_problem_with_line_and_column() -> None:
    assert refusal("servers:\n  web: [\n", upstreams=["web=x"]) == (
        "line 3, column 1: expected the node content, but found '<stream end>'",
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "servers:\n", "reload: true"])
def test_a_configuration_needs_a_server(text: str) -> None:
    assert refusal(text) == ("servers: name at least one server",)
    assert list(parse(text, upstreams=["web=http://h/"]).servers) == ["web"]


def test_who_says_that_there_are_no_servers_means_it() -> None:
    assert list(parse("servers: {}").servers) == []


@pytest.mark.parametrize("text", ["[]", "5", "text", "- servers"])
def test_a_document_is_a_mapping(text: str) -> None:
    (line,) = refusal(text, upstreams=["web=http://h/"])
    assert line.startswith("must be a mapping, not ")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_windows_files_and_json_files(tmp_path: Path, mark: str) -> None:
    for name, text in (
        ("crlf.yaml", "servers:\r\n  web:\r\n    url: http://127.0.0.1:1/mcp\r\n"),
        ("kars.json", '{\r\n\t"servers": {"web": {"url": "http://127.0.0.1:1/mcp"}}\r\n}\r\n'),
    ):
        (tmp_path / name).write_bytes((mark + text).encode())
        assert load(tmp_path / name, environ={}) == parse(ONE)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "long").write_bytes(b" " * (1 << 20) + b"x")
    for name, said in (
        ("none", "cannot be read: No such file or directory"),
        (".", "cannot be read: Is a directory"),
        ("binary/x", "cannot be read: Not a directory"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("n" * 300, "cannot be read: File name too long"),
        ("a\0b", "cannot be read: the name holds a forbidden character"),
        ("binary", "is not UTF-8 text: byte 128 is wrong"),
        ("long", "is longer than 1 MiB"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name, environ={})
        assert (caught.value.problems, caught.value.source) == ((said,), str(tmp_path / name))


# Flags


def test_upstreams_are_servers_with_every_tool() -> None:
    config = load(None, upstreams=["web=http://h/mcp?a=b", "db=https://i/"], environ={})
    assert [(name, each.url) for name, each in config.servers.items()] == [
        ("web", "http://h/mcp?a=b"),
        ("db", "https://i/"),
    ]
    assert all(each.allowed_tools == ("*",) for each in config.servers.values())


def test_upstreams_are_added_to_those_of_the_file() -> None:
    config = parse(ONE, upstreams=["db=http://h/"])
    assert list(config.servers) == ["web", "db"]
    assert config.servers["web"].allowed_tools == ()


def test_a_wrong_upstream_is_the_only_complaint() -> None:
    assert refusal("", upstreams=["http://h/"]) == ("--upstream: must be NAME=URL",)


def test_mistakes_in_flags_name_the_flags() -> None:
    said = refusal(
        ONE,
        upstreams=[
            "http://h/",
            "web=http://h/",
            "Up=http://h/",
            "db=http://me:s3cret@h/",
            "=x",
            "y=",
        ],
        overrides={"listen": "x", "admin": "127.0.0.1:99999"},
    )
    assert sorted(said) == [
        "--admin: must end in a port from 0 to 65535",
        "--listen: must be HOST:PORT, [IPV6]:PORT or unix:/path",
        f"--upstream Up: {NAME}",
        f"--upstream db: {NO_PASSWORD}",
        "--upstream web: is a server already; choose another name",
        "--upstream: must be NAME=URL",
        "--upstream: must be NAME=URL",
        "--upstream: must be NAME=URL",
    ]


def test_overrides_replace_what_the_file_says() -> None:
    config = parse(
        f"{ONE}listen: 127.0.0.1:1\nadmin: nonsense\n",
        overrides={"listen": "[::1]:2", "admin": None},
    )
    assert (config.listen, config.admin) == (Address("::1", 2), None)


# The environment


def test_named_variables_have_to_hold_a_token() -> None:
    text = "servers: {web: {url: 'http://h/', bearerFromEnv: TOKEN}}"
    for environ, said in (
        ({}, "the variable TOKEN is not set"),
        ({"TOKEN": " \n"}, "the variable TOKEN is empty"),
        (
            {"TOKEN": "a b"},
            "the variable TOKEN holds characters that no token has (white space or non-ASCII)",
        ),
        (
            {"TOKEN": "ü"},
            "the variable TOKEN holds characters that no token has (white space or non-ASCII)",
        ),
    ):
        assert refusal(text, environ=environ) == (f"servers.web.bearerFromEnv: {said}",)
    assert parse(text, environ={"TOKEN": "abc\n"}).servers["web"].bearer_from_env == "TOKEN"
    assert parse(text).servers["web"].bearer_from_env == "TOKEN"


def test_a_token_given_in_place_of_its_name_is_not_repeated() -> None:
    (line,) = refusal("servers: {web: {url: 'http://h/', bearerFromEnv: ghp_s3cret}}", environ={})
    assert line == "servers.web.bearerFromEnv: the variable that it names is not set"


def test_certificates_have_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    paths = ssl.get_default_verify_paths()
    known = paths.cafile or paths.openssl_cafile
    for name, said in (
        ("none.pem", "cannot be read: No such file or directory"),
        ("empty.pem", "holds no certificates in PEM form"),
    ):
        (tmp_path / "kars.yaml").write_text(
            f"servers: {{web: {{url: 'https://h/', caFile: {name}}}}}"
        )
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "kars.yaml", environ={})
        (line,) = caught.value.problems
        assert line == f"servers.web.caFile: {str(tmp_path / name)!r} {said}"
    if Path(known).is_file():
        text = f"servers: {{web: {{url: 'https://h/', caFile: '{known}'}}}}"
        assert parse(text, environ={}).servers["web"].ca_file == Path(known)


def test_paths_start_from_the_directory_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "kars.yaml").write_text(
        "state: ../state\n"
        "servers:\n"
        "  a: {url: 'http://h/', bearerFromFile: token}\n"
        "  b: {url: 'http://h/', bearerFromFile: ~/token}\n"
        "  c: {url: 'http://h/', bearerFromFile: /run/token}\n"
    )
    config = load(tmp_path / "kars.yaml", environ=HOME)
    assert config.state == tmp_path.parent / "state"
    assert [server.bearer_from_file for server in config.servers.values()] == [
        tmp_path / "token",
        Path("/home/kars/token"),
        Path("/run/token"),
    ]


def test_where_the_state_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(ONE).state is None
    assert parse(ONE, environ={}).state is None
    assert parse(ONE, environ=HOME).state == Path("/home/kars/.kars")
    assert parse(ONE, environ={**HOME, "KARS_STATE_DIR": "/state"}).state == Path("/state")
    assert parse(ONE, environ={"KARS_STATE_DIR": "here"}).state == tmp_path / "here"
    assert parse(f"{ONE}state: /mine", environ={"KARS_STATE_DIR": "/state"}).state == Path("/mine")


def test_which_file_is_meant_when_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_path({}) is None
    (tmp_path / "kars.yaml").touch()
    assert default_path({}) == Path("kars.yaml")
    assert default_path({"KARS_CONFIG": "/etc/kars.yaml"}) == Path("/etc/kars.yaml")


# Changes


def test_which_servers_changed() -> None:
    def config(**urls: str) -> Config:
        return build({"servers": {name: {"url": url} for name, url in urls.items()}})

    old = config(a="http://h/", b="http://h/", c="http://h/")
    assert changed_servers(old, old) == Changes((), (), ())
    new = config(d="http://h/", c="http://i/", b="http://h/")
    assert changed_servers(old, new) == Changes(added=("d",), removed=("a",), changed=("c",))
