from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from typing import Any

import pytest
from kars_plugin_playwright import PlaywrightPlugin, plugin
from kars_plugin_playwright.hooks import MAX_SESSIONS
from kars_plugin_playwright.page import RESET

from kars_router.errors import PluginError
from kars_router.model import SessionInfo, ToolCall
from kars_router.plugins import Plugins

PAGE = "http://127.0.0.1:8000/secret-token"


def session(key: str = "a", server: str = "browser") -> SessionInfo:
    return SessionInfo(server=server, agent="agent", generation=1, key=key)


def call(tool: str, **arguments: Any) -> ToolCall:
    params = json.dumps({"name": tool, "arguments": arguments}).encode()
    return ToolCall(agent="agent", server="browser", tool=tool, params=params)


def page(url: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"### Page\n- Page URL: {url}"}]}


def open_page(host: PlaywrightPlugin, where: SessionInfo) -> None:
    navigate = call("browser_navigate", url=PAGE)
    assert host.kars_detect_state_loss(navigate, where, page(PAGE)) is None


def look(host: PlaywrightPlugin, where: SessionInfo) -> str | None:
    return host.kars_detect_state_loss(call("browser_snapshot"), where, page("about:blank"))


@pytest.fixture
def installed() -> Iterator[PlaywrightPlugin]:
    """The instance of the entry point, left as it was found."""
    yield plugin
    plugin.kars_configure({})


def test_the_page_of_a_session_is_remembered_and_its_loss_told_once() -> None:
    host = PlaywrightPlugin()
    open_page(host, session())
    assert look(host, session()) == RESET
    assert look(host, session()) is None


def test_the_clause_holds_no_address() -> None:
    host = PlaywrightPlugin()
    open_page(host, session())
    assert "secret-token" not in str(look(host, session()))


def test_sessions_are_told_apart() -> None:
    host = PlaywrightPlugin()
    open_page(host, session("a"))
    assert look(host, session("b")) is None
    assert look(host, session("a")) == RESET


def test_the_arguments_of_the_call_are_heard() -> None:
    host = PlaywrightPlugin()
    open_page(host, session())
    leave = call("browser_evaluate", function="() => { location.href = 'about:blank' }")
    assert host.kars_detect_state_loss(leave, session(), page("about:blank")) is None


def test_only_a_recent_script_explains_an_empty_page() -> None:
    now = 0.0
    host = PlaywrightPlugin(clock=lambda: now)
    leave = call("browser_evaluate", function="() => { location.href = 'about:blank' }")
    for waited, told in [(1.0, None), (10.0, RESET)]:
        open_page(host, session())
        assert host.kars_detect_state_loss(leave, session(), page(PAGE)) is None
        now += waited
        assert look(host, session()) == told


@pytest.mark.parametrize("params", [b"", b"[]", b"{", b'{"arguments": 1}', b'{"name": "x"}'])
def test_params_of_any_shape_are_no_arguments(params: bytes) -> None:
    host = PlaywrightPlugin()
    open_page(host, session())
    odd = ToolCall(agent="agent", server="browser", tool="browser_snapshot", params=params)
    assert host.kars_detect_state_loss(odd, session(), page("about:blank")) == RESET


def test_a_closed_session_is_forgotten() -> None:
    host = PlaywrightPlugin()
    open_page(host, session())
    host.kars_session_closed(session())
    host.kars_session_closed(session())
    assert look(host, session()) is None


def test_the_memory_is_bounded_and_drops_the_session_unused_for_longest() -> None:
    host = PlaywrightPlugin()
    open_page(host, session("old"))
    open_page(host, session("used"))
    for number in range(MAX_SESSIONS - 1):
        open_page(host, session("used"))
        open_page(host, session(str(number)))
    assert look(host, session("old")) is None
    assert look(host, session("used")) == RESET


def test_tools_of_other_kinds_are_passed_over() -> None:
    host = PlaywrightPlugin()
    open_page(host, session())
    assert host.kars_detect_state_loss(call("query"), session(), page("about:blank")) is None
    assert look(host, session()) == RESET


@pytest.mark.parametrize("names", [["other"], []])
def test_only_the_named_servers_are_looked_at(names: list[str]) -> None:
    host = PlaywrightPlugin()
    host.kars_configure({"servers": names})
    open_page(host, session())
    assert look(host, session()) is None


def test_a_named_server_is_looked_at() -> None:
    host = PlaywrightPlugin()
    host.kars_configure({"servers": ["browser"]})
    open_page(host, session())
    assert look(host, session()) == RESET


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"server": ["browser"]}, "server"),
        ({"servers": "browser"}, "servers"),
        ({"servers": {"browser": True}}, "servers"),
        ({"servers": ["browser", 1]}, "servers"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(PluginError, match=f"`{named}`"):
        PlaywrightPlugin().kars_configure(options)


def test_the_router_finds_it_by_its_entry_point(installed: PlaywrightPlugin) -> None:
    (point,) = importlib.metadata.entry_points(group="kars_router", name="playwright")
    assert point.load() is installed
    loaded = Plugins.load(required=["playwright"], options={"playwright": {"servers": ["browser"]}})
    (entry,) = [entry for entry in loaded.entries() if entry.name == "playwright"]
    assert not entry.builtin
    assert entry.hooks == ("kars_configure", "kars_detect_state_loss", "kars_session_closed")
    assert installed.servers == frozenset({"browser"})


def test_the_router_asks_it_about_results(installed: PlaywrightPlugin) -> None:
    loaded = Plugins.load(required=["playwright"])
    where = session("through the host")
    navigate = call("browser_navigate", url=PAGE)
    assert loaded.detect_state_loss(navigate, where, page(PAGE)) is None
    looked = call("browser_snapshot")
    assert loaded.detect_state_loss(looked, where, page("about:blank")) == RESET
    loaded.session_closed(where, "the test is over")


def test_the_router_passes_its_refusal_on(installed: PlaywrightPlugin) -> None:
    with pytest.raises(PluginError, match="playwright: unknown option `idle`"):
        Plugins.load(options={"playwright": {"idle": 1}})
