from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define
from structlog.testing import capture_logs

from kars_router.errors import PluginError, UserError
from kars_router.hookspecs import Credentials, hookimpl
from kars_router.model import Failure, LossVerdict, Phase, Sent, ServerInfo, SessionInfo, ToolCall
from kars_router.plugins import BUILTINS, Plugins
from kars_router.telemetry import Metrics

LOST = Failure(server="s", phase=Phase.AWAIT, sent=Sent.YES, status=404, had_session=True)
INFO = ServerInfo(name="s", allowed_tools=("browser_*", "exact"))
CALL = ToolCall(agent="a", server="s", tool="t", params=b"{}")
SESSION = SessionInfo(server="s", agent="a", generation=1, key="s/a/1")


@define
class EntryPoint:
    name: str
    value: object
    dist: object = SimpleNamespace(version="1.5")

    def load(self) -> object:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the test says is installed, by name."""
    plugins: dict[str, object] = {}

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "kars_router"
        return [EntryPoint(name, value) for name, value in plugins.items()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return plugins


class Opinion:
    """A classifier with a fixed opinion."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    @hookimpl
    def kars_classify_loss(self, failure: Failure) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @hookimpl
    def kars_admit_tool(self, tool: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Configured:
    def __init__(self) -> None:
        self.options: Mapping[str, Any] | None = None

    @hookimpl
    def kars_configure(self, options: Mapping[str, Any]) -> None:
        if "wrong" in options:
            raise PluginError("wrong: there is no such option")
        if "crash" in options:
            raise KeyError("oops")
        self.options = options


def test_the_router_s_own_behaviour_is_made_of_plugins(installed: dict[str, object]) -> None:
    entries = Plugins.load().entries()
    assert {entry.name for entry in entries} == set(BUILTINS)
    assert all(entry.builtin and entry.hooks for entry in entries)


def test_installed_plugins_are_asked_before_the_router_s_own(
    installed: dict[str, object],
) -> None:
    installed["mine"] = Opinion(LossVerdict(False, "mine"))
    host = Plugins.load()
    assert host.entries()[0].name == "mine"
    assert (host.entries()[0].version, host.entries()[0].builtin) == ("1.5", False)
    assert host.entries()[0].hooks == ("kars_admit_tool", "kars_classify_loss")
    assert host.classify_loss(LOST) == LossVerdict(False, "mine", "mine")


@pytest.mark.parametrize("answer", [None, "nonsense", ValueError("broken")])
def test_without_a_usable_opinion_the_next_one_counts(
    installed: dict[str, object], answer: object
) -> None:
    installed["mine"] = Opinion(answer)
    verdict = Plugins.load().classify_loss(LOST)
    assert (verdict.lost, verdict.source) == (True, "loss")


def test_silence_means_that_nothing_is_lost(installed: dict[str, object]) -> None:
    assert not Plugins.load(blocked=["loss"]).classify_loss(LOST).lost


def test_a_plugin_that_raises_is_named_and_counted(installed: dict[str, object]) -> None:
    installed["mine"] = Opinion(ValueError("broken"))
    metrics = Metrics()
    host = Plugins.load(metrics=metrics)
    with capture_logs() as logs:
        host.classify_loss(LOST)
    said, detail = logs
    assert (said["plugin"], said["hook"]) == ("mine", "kars_classify_loss")
    # What it was about may be in the text, so only who is debugging sees that.
    assert said["error"] == "ValueError"
    assert "broken" not in str(said)
    assert (detail["log_level"], detail["exc_info"].args) == ("debug", ("broken",))
    labels = {"plugin": "mine", "hook": "kars_classify_loss"}
    assert metrics.registry.get_sample_value("kars_plugin_errors_total", labels) == 1


@pytest.mark.parametrize(
    ("tool", "admitted"),
    [("browser_click", True), ("exact", True), ("Exact", False), ("exactly", False), ("", False)],
)
def test_the_allow_list(installed: dict[str, object], tool: str, admitted: bool) -> None:
    assert Plugins.load().admits_tool(INFO, tool, {}) is admitted
    assert not Plugins.load().admits_tool(ServerInfo(name="s"), tool, {})


@pytest.mark.parametrize(
    ("answer", "admitted"), [(None, True), (True, True), (False, False), (ValueError(), False)]
)
def test_any_no_and_any_error_keeps_a_tool_out(
    installed: dict[str, object], answer: object, admitted: bool
) -> None:
    installed["mine"] = Opinion(answer)
    assert Plugins.load().admits_tool(INFO, "exact", {}) is admitted


def test_no_tool_without_anybody_who_admits_it(installed: dict[str, object]) -> None:
    assert not Plugins.load(blocked=["allowlist"]).admits_tool(INFO, "exact", {})


def test_a_blocked_plugin_is_not_even_loaded(installed: dict[str, object]) -> None:
    installed["mine"] = RuntimeError("must not be imported")
    host = Plugins.load(blocked=["mine", "loss"], options={"mine": {"a": 1}})
    assert {entry.name for entry in host.entries()} == {*BUILTINS} - {"loss"}


def test_a_broken_plugin_is_named_and_left_out(installed: dict[str, object]) -> None:
    installed["mine"] = ImportError("no module named x")
    with capture_logs() as logs:
        host = Plugins.load()
    assert [(entry["event"], entry["plugin"]) for entry in logs] == [("plugin_broken", "mine")]
    assert "mine" not in {entry.name for entry in host.entries()}
    assert [(entry.name, entry.error) for entry in host.broken] == [
        ("mine", "ImportError('no module named x')")
    ]


def test_a_required_plugin_that_is_broken_or_missing_is_an_error(
    installed: dict[str, object],
) -> None:
    installed["mine"] = ImportError("no module named x")
    with pytest.raises(PluginError, match=r"plugin mine: no module named x"):
        Plugins.load(required=["mine"])
    with pytest.raises(PluginError, match="plugin other is required but not installed"):
        Plugins.load(required=["other"])


class Wrapper:
    @hookimpl(wrapper=True)
    def kars_classify_loss(self) -> Any:
        return (yield)


class OldWrapper:
    @hookimpl(hookwrapper=True)
    def kars_classify_loss(self) -> Any:
        yield


class Unknown:
    @hookimpl
    def kars_no_such_hook(self) -> None: ...


class Misfit:
    @hookimpl
    def kars_classify_loss(self, failure: Failure, more: int) -> None: ...


@pytest.mark.parametrize("plugin", [Wrapper(), OldWrapper(), Unknown(), Misfit()])
def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(
    installed: dict[str, object], plugin: object
) -> None:
    installed["mine"] = plugin
    with pytest.raises(PluginError, match="plugin mine"):
        Plugins.load(required=["mine"])
    host = Plugins.load()
    assert "mine" not in {entry.name for entry in host.entries()}
    assert host.classify_loss(LOST).lost


def test_a_name_is_taken_once(installed: dict[str, object]) -> None:
    host = Plugins.load()
    with pytest.raises(PluginError, match="plugin loss"):
        host.register(Opinion(None), "loss")


def test_each_plugin_gets_its_own_options(installed: dict[str, object]) -> None:
    plugins = installed["one"], installed["two"] = Configured(), Configured()
    Plugins.load(options={"one": {"a": 1}})
    assert [plugin.options for plugin in plugins] == [{"a": 1}, {}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"one": {"wrong": 1}}, "plugins.options.one: wrong: there is no such option"),
        ({"one": {"crash": 1}}, "plugins.options.one: KeyError"),
        ({"plain": {"a": 1}}, "plugins.options.plain: the plugin takes no options"),
        ({"loss": {"a": 1}}, "plugins.options.loss"),
        ({"missing": {}}, "plugins.options names missing, which is not installed"),
    ],
)
def test_options_that_nobody_can_use_are_an_error(
    installed: dict[str, object], options: dict[str, dict[str, Any]], message: str
) -> None:
    installed.update(one=Configured(), plain=Opinion(None))
    with pytest.raises(PluginError, match=message):
        Plugins.load(options=options)


class Watcher:
    def __init__(self, answer: object = None) -> None:
        self.seen: list[object] = []
        self.answer = answer

    @hookimpl
    def kars_detect_state_loss(self, call: ToolCall, result: Mapping[str, Any]) -> Any:
        self.seen.append(result)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @hookimpl
    def kars_session_opened(self, session: SessionInfo) -> None:
        self.seen.append(session)
        if isinstance(self.answer, Exception):
            raise self.answer

    @hookimpl
    def kars_session_closed(self, session: SessionInfo, reason: str) -> None:
        self.seen.append(reason)
        if isinstance(self.answer, Exception):
            raise self.answer


def test_everybody_is_told_of_sessions_whoever_raises(installed: dict[str, object]) -> None:
    plugins = Watcher(ValueError()), Watcher(), Watcher(ValueError())
    installed.update(zip("abc", plugins, strict=True))
    host = Plugins.load()
    host.session_opened(SESSION)
    host.session_closed(SESSION, "shutdown")
    assert [plugin.seen for plugin in plugins] == [[SESSION, "shutdown"]] * 3


@pytest.mark.parametrize("answer", [None, "", 5, ValueError(), "the page is gone"])
def test_a_lost_state_is_what_a_plugin_says_it_is(
    installed: dict[str, object], answer: object
) -> None:
    assert not Plugins.load().detects_state_loss
    installed["mine"] = Watcher(answer)
    host = Plugins.load()
    assert host.detects_state_loss
    expected = "the page is gone" if answer == "the page is gone" else None
    assert host.detect_state_loss(CALL, SESSION, {}) == expected


async def test_a_bearer_token_from_the_environment(
    installed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Plugins.load()
    assert host.credentials(INFO) is None
    monkeypatch.setenv("TOKEN", " secret ")
    credentials = host.credentials(ServerInfo(name="s", bearer_from_env="TOKEN"))
    assert credentials is not None
    assert await credentials.headers(refresh=False) == {"authorization": "Bearer secret"}
    assert "secret" not in repr(credentials)


@pytest.mark.parametrize("token", ["", "  ", "se\u00e9cret", "a\nb"])
async def test_an_unusable_token_is_a_user_s_mistake(
    installed: dict[str, object], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("TOKEN", token)
    credentials = Plugins.load().credentials(ServerInfo(name="s", bearer_from_env="TOKEN"))
    assert credentials is not None
    with pytest.raises(UserError, match="TOKEN") as caught:
        await credentials.headers(refresh=False)
    assert not token.strip() or token not in str(caught.value)


async def test_a_token_file_is_read_again_when_it_changes_and_when_the_token_is_refused(
    installed: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("one\n")
    credentials = Plugins.load().credentials(ServerInfo(name="s", bearer_from_file=str(path)))
    assert credentials is not None
    assert await credentials.headers(refresh=False) == {"authorization": "Bearer one"}
    path.write_text("second\n")
    assert await credentials.headers(refresh=False) == {"authorization": "Bearer second"}
    assert await credentials.headers(refresh=True) == {"authorization": "Bearer second"}
    path.unlink()
    # It is for the server to say that a token is of no more use.
    assert await credentials.headers(refresh=False) == {"authorization": "Bearer second"}
    with pytest.raises(UserError, match="bearerFromFile"):
        await credentials.headers(refresh=True)


class Own:
    @hookimpl
    def kars_credentials(self, server: ServerInfo) -> Credentials | None:
        return _Own() if server.name == "s" else None


class _Own:
    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        return {"x-own": "1"}


async def test_an_installed_plugin_supplies_credentials_first(
    installed: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "t")
    installed["own"] = Own()
    host = Plugins.load()
    supplied = {}
    for name in ("s", "t"):
        found = host.credentials(ServerInfo(name=name, bearer_from_env="TOKEN"))
        assert found is not None
        supplied[name] = await found.headers(refresh=False)
    assert supplied == {"s": {"x-own": "1"}, "t": {"authorization": "Bearer t"}}


def test_a_plugin_that_breaks_while_it_is_set_up_is_left_out(
    installed: dict[str, object],
) -> None:
    class Breaking:
        @hookimpl
        def kars_configure(self, options: Any) -> None:
            raise RuntimeError("no")

        @hookimpl
        def kars_classify_loss(self, failure: Failure) -> LossVerdict:
            raise AssertionError("asked all the same")

    installed["mine"] = Breaking()
    with capture_logs() as logs:
        host = Plugins.load()
    assert [entry.name for entry in host.broken] == ["mine"]
    assert "mine" not in {entry.name for entry in host.entries()}
    assert host.classify_loss(LOST).source != "mine"
    assert {entry["event"] for entry in logs} == {"plugin_broken"}
    with pytest.raises(PluginError, match="plugin mine"):
        Plugins.load(required=["mine"])


def test_who_blocks_what_is_not_there_is_told(installed: dict[str, object]) -> None:
    with capture_logs() as logs:
        Plugins.load(blocked=["lossy", "loss"])
    assert [(e["event"], e["plugin"]) for e in logs] == [
        ("plugin_blocked_is_not_installed", "lossy")
    ]
