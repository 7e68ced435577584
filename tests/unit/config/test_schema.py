"""From plain data to values and back, and what is said of every kind of mistake."""

# ruff: noqa: E501 (tables: a mistake and what is said of it stand on one line)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.config.addresses import Address
from kars_router.config.converter import structure_config, structure_server, to_plain
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.problems import InvalidConfigError, InvalidError
from kars_router.config.schema import (
    Config,
    LogFormat,
    LogLevel,
    OnSessionLoss,
    Server,
    SessionScope,
    Transport,
)

WEB = {"url": "http://127.0.0.1:8931/mcp"}

EVERYTHING: dict[str, Any] = {
    "listen": "0.0.0.0:8444",
    "admin": "unix:/run/kars/admin.sock",
    "servers": {
        "web": {
            "url": "https://mcp.example/mcp",
            "transport": "streamable-http",
            "allowedTools": ["browser_*", "read"],
            "bearerFromFile": "/run/token",
            "caFile": "/etc/ca.pem",
            "sessionScope": "shared",
            "onSessionLoss": "fail",
            "timeouts": {"connect": "1s", "call": "1m30s", "idle": "2h"},
            "maxConnections": 3,
            "listenSilence": "30s",
        },
        "a-1": {"url": "http://[::1]:1/", "bearerFromEnv": "TOKEN"},
    },
    "plugins": {
        "blocked": ["kars_plugin_x"],
        "required": ["playwright"],
        "options": {"playwright": {"a": [1, {"b": None}], "c": 0.5, "d": True, "e": "f"}},
    },
    "state": "/var/lib/kars",
    "allowedHosts": ["router.example:8443"],
    "allowedOrigins": ["https://ui.example"],
    "limits": {
        "agentSessions": 1,
        "concurrentCalls": 2,
        "requestBytes": "1MiB",
        "eventBytes": "2MiB",
        "responseBytes": "3MiB",
        "tools": 4,
    },
    "sessions": {"idle": "5m", "lifetime": "1d"},
    "shutdownGrace": "10s",
    "log": {"level": "debug", "format": "console"},
    "reload": False,
}


def lines(raw: object) -> list[str]:
    with pytest.raises(InvalidError) as caught:
        structure_config(raw)
    return [problem.line for problem in caught.value.problems]


def server_lines(**keys: object) -> list[str]:
    with pytest.raises(InvalidConfigError) as caught:
        structure_server({**WEB, **keys})
    return list(caught.value.problems)


def test_defaults() -> None:
    assert structure_config({}) == Config()
    assert structure_server(WEB) == Server(url=WEB["url"])
    assert structure_server(WEB).allowed_tools == ()


def test_everything_can_be_set() -> None:
    config = structure_config(EVERYTHING)
    server = config.servers["web"]
    assert config.listen == Address("0.0.0.0", 8444)
    assert config.admin == Address(path="/run/kars/admin.sock")
    assert list(config.servers) == ["web", "a-1"]
    assert server.transport is Transport.STREAMABLE_HTTP
    assert server.allowed_tools == ("browser_*", "read")
    assert server.bearer_from_file == Path("/run/token")
    assert server.ca_file == Path("/etc/ca.pem")
    assert server.session_scope is SessionScope.SHARED
    assert server.on_session_loss is OnSessionLoss.FAIL
    assert (server.timeouts.connect, server.timeouts.call, server.timeouts.idle) == (1, 90, 7200)
    assert (server.max_connections, server.listen_silence) == (3, 30)
    assert config.servers["a-1"].bearer_from_env == "TOKEN"
    assert config.plugins.blocked == ("kars_plugin_x",)
    assert config.plugins.required == ("playwright",)
    assert config.plugins.options == {
        "playwright": {"a": (1, {"b": None}), "c": 0.5, "d": True, "e": "f"}
    }
    assert config.state == Path("/var/lib/kars")
    assert config.allowed_hosts == ("router.example:8443",)
    assert config.allowed_origins == ("https://ui.example",)
    assert config.limits.request_bytes == 1 << 20
    assert (config.limits.agent_sessions, config.limits.tools) == (1, 4)
    assert (config.sessions.idle, config.sessions.lifetime) == (300, 86_400)
    assert config.shutdown_grace == 10
    assert (config.log.level, config.log.format) == (LogLevel.DEBUG, LogFormat.CONSOLE)
    assert config.reload is False


def test_everything_goes_back_to_what_it_was() -> None:
    plain = to_plain(structure_config(EVERYTHING))

    def agrees(given: object, back: object) -> bool:
        if isinstance(given, dict) and isinstance(back, dict):
            return all(agrees(value, back[key]) for key, value in given.items())
        return given == back

    assert agrees(EVERYTHING, plain)
    assert structure_config(plain) == structure_config(EVERYTHING)
    assert type(plain["log"]["level"]) is str  # type: ignore[index]


def test_configurations_can_be_hashed_and_compared() -> None:
    first, second = structure_config(EVERYTHING), structure_config(EVERYTHING)
    assert first == second
    assert hash(first) == hash(second)
    other = structure_config({**EVERYTHING, "reload": True})
    assert first != other
    assert len({first, second, other}) == 2


def test_maps_compare_by_their_items() -> None:
    assert FrozenMap({"a": 1, "b": 2}) == FrozenMap([("b", 2), ("a", 1)])
    assert hash(FrozenMap({"a": 1, "b": 2})) == hash(FrozenMap({"b": 2, "a": 1}))
    assert FrozenMap({"a": 1}) != FrozenMap({"a": 2})
    assert repr(FrozenMap({"a": 1})) == "FrozenMap({'a': 1})"


def test_null_is_as_if_the_key_were_absent() -> None:
    raw = {
        "listen": None,
        "servers": {"web": {**WEB, "allowedTools": None, "timeouts": None, "oauth": None}},
    }
    assert structure_config(raw) == structure_config({"servers": {"web": WEB}})


def test_both_listeners_may_leave_the_port_to_the_system() -> None:
    config = structure_config({"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"})
    assert config.listen == config.admin


def test_admin_null_is_no_admin_listener() -> None:
    assert structure_config({"admin": None}).admin is None


def test_secrets_are_never_shown() -> None:
    raw = {
        "url": "https://h/mcp?key=s3cret",
        "headers": {"X-Api-Key": "s3cret"},
        "bearerFromEnv": "TOKEN",
    }
    server = structure_server(raw)
    assert server.headers == {"X-Api-Key": "s3cret"}
    assert "s3cret" not in repr(server) + str(to_plain(server))
    assert to_plain(server)["headers"] == {"X-Api-Key": "(hidden)"}
    assert to_plain(server)["url"] == "https://h/mcp?..."


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": 5_551_234},
        {"url": ["5551234"]},
        {"url": "http://5551234@h/"},
        {"bearerFromEnv": "5551234"},
        {"bearerFromEnv": 5_551_234},
        {"headers": {"X-A": 5_551_234}},
        {"headers": {"X-A": "5551234\n"}},
        {"headers": {"Authorization": "5551234"}},
        {"env": {"A": 5_551_234}},
    ],
)
def test_values_that_may_be_secrets_are_not_repeated(wrong: dict[str, object]) -> None:
    said = server_lines(**wrong)
    assert said
    assert "5551234" not in str(said)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (5, "must be a mapping, not 5"),
        ([], "must be a mapping, not a list"),
        ({"listen": 8443}, "listen: must be a string, not 8443"),
        ({"listen": "8443"}, "listen: must be HOST:PORT, [IPV6]:PORT or unix:/path"),
        ({"admin": "127.0.0.1:8443"}, "admin: must be another address than listen"),
        ({"listen": "127.0.0.1:9090"}, "admin: must be another address than listen"),
        ({"listen": "unix:/a", "admin": "unix:/a"}, "admin: must be another address than listen"),
        ({"lisen": 1}, "lisen: is not a known key (did you mean 'listen'?)"),
        ({"allowed_hosts": []}, "allowed_hosts: is not a known key (did you mean 'allowedHosts'?)"),
        ({"zzz": 1}, "zzz: is not a known key"),
        ({"a key": 1}, '["a key"]: is not a known key'),
        ({"": 1}, '[""]: is not a known key'),
        ({5: 1}, "has the key 5, which must be a string: quote it"),
        ({"servers": []}, "servers: must be a mapping, not a list"),
        ({"servers": {5: WEB}}, "servers: has the key 5, which must be a string: quote it"),
        (
            {"servers": {"My_Web": WEB}},
            "servers.My_Web: is not a server name: it takes 1 to 63 lower-case letters, digits or inner dashes",
        ),
        ({"servers": {"web": None}}, "servers.web: must be a mapping, not null"),
        ({"policies": {}}, "policies: must be a list, not a mapping"),
        ({"plugins": {"blocked": ["a", "b"], "required": ["b"]}}, "plugins.blocked: names 'b', which required names as well"),
        ({"plugins": {"blocked": [" "]}}, "plugins.blocked[0]: must be a name: letters, digits, dots, dashes, underscores"),
        ({"plugins": {"options": {"p": []}}}, "plugins.options.p: must be a mapping, not a list"),
        ({"plugins": {"options": {"p": {"q": float("nan")}}}}, "plugins.options.p.q: must be a finite number"),
        ({"plugins": {"options": {"p": {"q": [{1: 2}]}}}}, "plugins.options.p.q[0]: has the key 1, which must be a string: quote it"),
        ({"plugins": {"options": {"p": {"q": [b"x"]}}}}, "plugins.options.p.q[0]: must be plain data, not a value of type bytes"),
        ({"state": ""}, "state: must be a path, which is neither empty nor holds control characters"),
        ({"allowedHosts": "a"}, "allowedHosts: must be a list, not 'a'"),
        ({"allowedHosts": ["*"]}, "allowedHosts[0]: must be a host such as ui.example or ui.example:8443, no wild card"),
        ({"allowedOrigins": ["*"]}, "allowedOrigins[0]: must be an origin such as https://ui.example, no wild card"),
        ({"limits": {"tools": 0}}, "limits.tools: must be from 1 to 1000000, not 0"),
        ({"limits": {"tools": 10**6 + 1}}, "limits.tools: must be from 1 to 1000000, not 1000001"),
        ({"limits": {"tools": True}}, "limits.tools: must be a whole number, not true"),
        ({"limits": {"tools": 1.0}}, "limits.tools: must be a whole number, not 1.0"),
        ({"limits": {"tools": 10**30}}, "limits.tools: must be from 1 to 1000000, not a number"),
        ({"limits": {"requestBytes": "4M"}}, "limits.requestBytes: must be a size such as 65536, 64KiB or 4MiB, not '4M'"),
        ({"sessions": {"idle": "1x"}}, "sessions.idle: must be a duration such as 300ms, 5s, 1m30s, 1h or 7d, not '1x'"),
        ({"shutdownGrace": 0}, "shutdownGrace: must be longer than 0 and shorter than 366 days, not 0"),
        ({"log": {"level": "warn"}}, "log.level: must be one of debug, info, warning, error, not 'warn' (did you mean 'warning'?)"),
        ({"log": {"format": 1}}, "log.format: must be one of json, console, auto, not 1"),
        ({"reload": "no"}, "reload: must be true or false, not 'no'"),
        ({"reload": "x" * 70}, f"reload: must be true or false, not '{'x' * 57}...'"),
    ],
)  # fmt: skip
def test_mistakes(raw: object, line: str) -> None:
    assert lines(raw) == [line]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"url": None}, "url: is missing: give the server's address, such as http://localhost:8931/mcp"),
        ({"url": "h:1"}, "url: must start with http://, https://, ws:// or wss://"),
        ({"url": 5}, "url: must be a string, not a number"),
        ({"url": "ws://h/", "transport": "sse"}, "transport: cannot be sse with a url that does not start with http:// or https://"),
        ({"url": "wss://h/", "transport": "streamable-http"}, "transport: cannot be streamable-http with a url that does not start with http:// or https://"),
        ({"transport": "websocket"}, "transport: cannot be websocket with a url that does not start with ws:// or wss://"),
        ({"transport": "stdio"}, "transport: cannot be stdio with a url; give a command instead"),
        ({"transport": "http"}, "transport: must be one of auto, streamable-http, sse, websocket, stdio, not 'http'"),
        ({"transport": ["sse"]}, "transport: must be one of auto, streamable-http, sse, websocket, stdio, not a list"),
        ({"allowedNetworks": ["10.0.0.0"], "url": None, "command": "npx"}, "allowedNetworks: has no meaning with a command, which is given what it needs in args and env"),
        ({"url": None, "command": "npx", "transport": "sse"}, "transport: cannot be sse with a command, which is spoken to over stdio"),
        ({"url": None, "command": "npx", "bearerFromEnv": "A"}, "bearerFromEnv: has no meaning with a command, which is given what it needs in args and env"),
        ({"url": None, "command": "npx", "bearerFromFile": "a"}, "bearerFromFile: has no meaning with a command, which is given what it needs in args and env"),
        ({"url": None, "command": "npx", "headers": {"A": "b"}}, "headers: has no meaning with a command, which is given what it needs in args and env"),
        ({"url": None, "command": "npx", "caFile": "a"}, "caFile: has no meaning with a command, which is given what it needs in args and env"),
        ({"url": None, "command": "npx", "maxConnections": 1}, "maxConnections: has no meaning with a command, which is given what it needs in args and env"),
        ({"args": ["-y"]}, "args: has no meaning without command"),
        ({"env": {"A": "b"}}, "env: has no meaning without command"),
        ({"allowedTools": "*"}, "allowedTools: must be a list, not '*'"),
        ({"allowedTools": ["a", 5]}, "allowedTools[1]: must be a string, not 5"),
        ({"allowedTools": ["[a"]}, "allowedTools[0]: has a '[' without its ']'; write '[[]' for the character itself"),
        ({"bearerFromEnv": "A", "bearerFromFile": "b"}, "bearerFromFile: cannot stand beside bearerFromEnv: a server has one token"),
        ({"headers": {"Cookie": "a"}}, "headers.Cookie: cannot be set here, since it belongs to a browser and the router is none"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a: is given twice, as 'X-A' too: case does not matter here"),
        ({"caFile": "ca.pem"}, "caFile: has no effect on a URL without TLS; use https"),
        ({"url": "ws://h/", "caFile": "ca.pem"}, "caFile: has no effect on a URL without TLS; use wss"),
        ({"sessionScope": "pod"}, "sessionScope: must be one of agent, shared, not 'pod'"),
        ({"onSessionLoss": "retry"}, "onSessionLoss: must be one of replay, fail, not 'retry'"),
        ({"timeouts": {"read": 5}}, "timeouts.read: is not a known key"),
        ({"timeouts": 5}, "timeouts: must be a mapping, not 5"),
        ({"maxConnections": "64"}, "maxConnections: must be a whole number, not '64'"),
        ({"alowedTools": []}, "alowedTools: is not a known key (did you mean 'allowedTools'?)"),
    ],
)  # fmt: skip
def test_mistakes_in_a_server(keys: dict[str, object], line: str) -> None:
    assert server_lines(**keys) == [line]


@pytest.mark.parametrize(
    "keys",
    [
        {"url": "ws://h/"},
        {"url": "wss://h:1/ws?a=b", "transport": "websocket", "caFile": "/ca.pem", "headers": {"A": "b"}},
        {"url": "http://h/sse", "transport": "sse"},
        {"url": "https://h/", "transport": "streamable-http"},
        {"command": "npx"},
        {"command": ["npx", "-y"], "args": ["pkg"], "env": {"A": "b"}, "transport": "stdio"},
        {"command": "npx", "transport": "auto", "maxConnections": 64},
    ],
)  # fmt: skip
def test_transports_that_fit(keys: dict[str, object]) -> None:
    server = structure_server(keys)
    assert server.url == keys.get("url")
    assert server.transport == keys.get("transport", "auto")


def test_a_url_and_a_command_exclude_each_other() -> None:
    assert server_lines(command=["x", 5]) == [
        "url: cannot stand beside command: a server has one or the other",
        "command[1]: must be a string, not a number",
    ]
    assert "command: must name a program" in server_lines(command="")
    assert "command: must be a program or a list of words, not 5" in server_lines(command=5)


def test_all_mistakes_come_at_once_and_in_the_order_of_the_file() -> None:
    raw = {
        "shutdownGrace": "soon",
        "servers": {
            "two": {"timeouts": {"call": 0, "idle": "x"}, "url": "http://h/", "oauth": []},
            "one": {"allowedTools": [1, "ok", 2]},
        },
        "lisen": "127.0.0.1:1",
        "policies": [1],
        "listen": "127.0.0.1:9090",
    }
    assert [line.split(": ")[0] for line in lines(raw)] == [
        "admin",
        "shutdownGrace",
        "servers.two.timeouts.call",
        "servers.two.timeouts.idle",
        "servers.two.oauth",
        "servers.one.url",
        "servers.one.allowedTools[0]",
        "servers.one.allowedTools[2]",
        "lisen",
        "policies[0]",
    ]


def test_a_server_of_a_custom_resource_has_its_own_path_and_source() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        structure_server({"url": "x", "maxConnections": 0}, ("items", 3, "spec"), "default/web")
    assert caught.value.source == "default/web"
    assert caught.value.problems == (
        "items[3].spec.url: must start with http://, https://, ws:// or wss://",
        "items[3].spec.maxConnections: must be from 1 to 1000000, not 0",
    )


def test_options_nest_to_a_depth() -> None:
    deep: object = 1
    for _ in range(31):
        deep = [deep]
    assert "p" in structure_config({"plugins": {"options": {"p": {"q": deep}}}}).plugins.options
    (line,) = lines({"plugins": {"options": {"p": {"q": [[deep]]}}}})
    assert line.endswith("is nested more than 32 deep")


def _names(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(pattern, fullmatch=True)


_DURATIONS = st.floats(min_value=0.001, max_value=30_000_000) | st.integers(1, 366 * 86_400 - 1)
_SERVERS = st.fixed_dictionaries(
    {"url": _names(r"https://[a-z]{1,9}(:[1-9][0-9]{0,3})?(/[a-z]{0,5})?")},
    optional={
        "allowedTools": st.lists(_names(r"[a-z*?]{1,8}")),
        "bearerFromEnv": _names(r"[A-Z_][A-Z0-9_]{0,9}"),
        "sessionScope": st.sampled_from(list(SessionScope)).map(str),
        "onSessionLoss": st.sampled_from(list(OnSessionLoss)).map(str),
        "timeouts": st.fixed_dictionaries({}, optional={"connect": _DURATIONS, "idle": _DURATIONS}),
        "maxConnections": st.integers(1, 10**6),
    },
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "listen": st.integers(0, 9089).map(lambda port: f"[::1]:{port}"),
        "admin": st.none() | st.integers(9090, 65_535).map(lambda port: f"localhost:{port}"),
        "servers": st.dictionaries(_names(r"[a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?"), _SERVERS, max_size=3),
        "plugins": st.fixed_dictionaries(
            {}, optional={"options": st.dictionaries(_names("[a-z]{1,5}"), st.dictionaries(st.text(), _JSON, max_size=2))}
        ),
        "limits": st.fixed_dictionaries({}, optional={"eventBytes": st.integers(1024, 1 << 40), "tools": st.integers(1, 9)}),
        "shutdownGrace": _DURATIONS,
    },
)  # fmt: skip


@given(_CONFIGS)
def test_every_valid_configuration_survives_the_way_to_plain_data_and_back(raw: object) -> None:
    config = structure_config(raw)
    assert structure_config(to_plain(config)) == config
