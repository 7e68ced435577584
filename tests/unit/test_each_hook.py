"""Each hook, asked of one plugin through the host, and what the router makes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from attrs import evolve

from kars_router import hookspecs
from kars_router.egress import Place, SandboxEgress
from kars_router.errors import ConfigError, PluginError, UserError
from kars_router.hookspecs import GovernanceSettings, hookimpl
from kars_router.model import (
    Failure,
    LossVerdict,
    Phase,
    Ruling,
    ServerInfo,
    SessionInfo,
    ToolCall,
)
from kars_router.plugins import Plugins
from kars_router.testing import call_end, decide, governed_call, plugin_host

SERVER = ServerInfo(name="box", url="https://box.example/mcp")
SESSION = SessionInfo(server="box", agent="a1", generation=2, key="box/a1/2")
CALL = ToolCall(agent="a1", server="box", tool="echo", params=b"{}")
FAILURE = Failure(server="box", phase=Phase.AWAIT, status=410)
SETTINGS = GovernanceSettings()


def asked(
    hook: str, answer: Callable[..., Any] | None = None, **options: Any
) -> tuple[Plugins, list[dict[str, Any]]]:
    """A host with a plugin that implements one hook, and what it is asked.

    Args:
        hook: the hook.
        answer: gets the arguments by name; None for an implementation that returns None.
        options: the plugin's own.
    """
    seen: list[dict[str, Any]] = []
    names = list(hookspecs.__dict__[hook].__annotations__)[:-1]

    def implementation(*values: Any) -> Any:
        given = dict(zip(names, values, strict=True))
        seen.append(given)
        return None if answer is None else answer(**given)

    # pluggy reads the arguments' names from the signature, so that it has to be a real one.
    signature = ", ".join(names)
    space: dict[str, Any] = {"implementation": implementation}
    exec(f"def {hook}({signature}): return implementation({signature})", space)

    class Plugin:
        pass

    made = Plugin()
    setattr(made, hook, hookimpl(space[hook]))
    return plugin_host(made, options=options), seen


def broken(**_: Any) -> Any:
    raise ValueError("broken")


def refusing(error: Exception) -> Callable[..., Any]:
    def refuse(**_: Any) -> Any:
        raise error

    return refuse


def test_kars_configure() -> None:
    assert asked("kars_configure", depth=1)[1] == [{"options": {"depth": 1}}]
    assert asked("kars_configure")[1] == [{"options": {}}]
    with pytest.raises(PluginError, match=r"plugins\.options\.plugin: no depth"):
        asked("kars_configure", refusing(PluginError("no depth")), depth=1)
    with pytest.raises(PluginError, match="takes no options"):
        asked("kars_session_opened", depth=1)


def test_kars_classify_loss() -> None:
    host, seen = asked("kars_classify_loss", lambda failure: LossVerdict(True, "gone"))
    assert host.classify_loss(FAILURE) == LossVerdict(True, "gone", source="plugin")
    assert seen == [{"failure": FAILURE}]
    assert not asked("kars_classify_loss", broken)[0].classify_loss(FAILURE).lost


@pytest.mark.parametrize("answer", [True, False, None])
def test_kars_admit_tool(answer: bool | None) -> None:
    host, seen = asked("kars_admit_tool", lambda **_: answer)
    assert host.admits_tool(SERVER, "echo", {"name": "echo"}) is (answer is True)
    assert seen == [{"server": SERVER, "tool": "echo", "definition": {"name": "echo"}}]


class Basic:
    """Credentials that count how often they were renewed."""

    renewed = 0

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        self.renewed += refresh
        if self.renewed > 1:
            raise ValueError("secret")
        return {"authorization": f"Basic {self.renewed}"}


async def test_kars_credentials() -> None:
    host, seen = asked("kars_credentials", lambda server: Basic())
    credentials = host.credentials(SERVER)
    assert seen == [{"server": SERVER}]
    assert credentials is not None
    assert await credentials.headers(refresh=False) == {"authorization": "Basic 0"}
    assert await credentials.headers(refresh=True) == {"authorization": "Basic 1"}
    with pytest.raises(UserError) as caught:
        await credentials.headers(refresh=True)
    assert "secret" not in str(caught.value)
    assert asked("kars_credentials", broken)[0].credentials(SERVER) is None


def test_kars_detect_state_loss() -> None:
    host, seen = asked("kars_detect_state_loss", lambda call, **_: f"{call.tool} is gone")
    assert host.detects_state_loss
    assert host.detect_state_loss(CALL, SESSION, {"content": []}) == "echo is gone"
    assert seen == [{"call": CALL, "session": SESSION, "result": {"content": []}}]
    assert asked("kars_detect_state_loss", broken)[0].detect_state_loss(CALL, SESSION, {}) is None


def test_kars_session_opened() -> None:
    host, seen = asked("kars_session_opened")
    host.session_opened(SESSION)
    assert seen == [{"session": SESSION}]


def test_kars_session_lost() -> None:
    host, seen = asked("kars_session_lost", broken)
    host.session_lost(SESSION, "404")
    assert seen == [{"session": SESSION, "reason": "404"}]


def test_kars_session_restored() -> None:
    host, seen = asked("kars_session_restored", broken)
    host.session_restored(SESSION, "404")
    assert seen == [{"session": SESSION, "reason": "404"}]


def test_kars_session_closed() -> None:
    host, seen = asked("kars_session_closed", broken)
    host.session_closed(SESSION, "idle")
    assert seen == [{"session": SESSION, "reason": "idle"}]


class Silent:
    """A governor without an opinion, and a transformer that changes nothing."""

    enforces_policies = True

    async def before_call(self, call: Any) -> None:
        pass

    async def after_call(self, call: Any, end: Any) -> None:
        pass

    async def aclose(self) -> None:
        pass

    def outgoing(self, call: Any) -> bytes:
        return bytes(call.params)

    def incoming(self, call: Any, body: bytes) -> bytes:
        return body


async def test_kars_governors() -> None:
    host, seen = asked("kars_governors", lambda settings: [Silent(), Silent()])
    policies = GovernanceSettings(policies=["p"])
    governors = host.governors(policies)
    assert seen == [{"settings": policies}]
    assert [each.plugin for each in governors] == ["plugin", "plugin"]
    call = governed_call()
    assert await governors[0].before_call(call, seconds=1) is None
    assert await governors[0].after_call(call, call_end(), seconds=1) is None
    assert (await decide(governors[0].governor, call)).ruling is Ruling.ALLOW


@pytest.mark.parametrize("hook", ["governors", "transformers"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (broken, PluginError),
        (lambda **_: 7, PluginError),
        (refusing(ConfigError(["policies[0]: no"])), ConfigError),
    ],
)
def test_without_what_should_decide_there_is_no_host_to_ask(
    hook: str, answer: Callable[..., Any], error: type[Exception]
) -> None:
    host, _ = asked(f"kars_{hook}", answer)
    with pytest.raises(error):
        getattr(host, hook)(SETTINGS)


def test_kars_transformers() -> None:
    host, seen = asked("kars_transformers", lambda settings: (Silent(),))
    [transformer] = host.transformers(SETTINGS)
    assert seen == [{"settings": SETTINGS}]
    call = governed_call("echo", {"n": 1})
    assert transformer.outgoing(call) == call.params
    assert transformer.incoming(call, b"{}") == b"{}"


class Sink:
    async def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        pass

    async def aclose(self) -> None:
        pass


def test_kars_audit_sinks() -> None:
    sink = Sink()
    host, seen = asked("kars_audit_sinks", lambda: [sink])
    assert host.audit_sinks() == [("plugin", sink)]
    assert seen == [{}]
    assert asked("kars_audit_sinks", broken)[0].audit_sinks() == []


def test_kars_egress_rules() -> None:
    place = Place()
    rule, more = {"ports": [{"port": 443}]}, {"ports": [{"port": 80}]}
    host, seen = asked("kars_egress_rules", lambda rules, **_: [*rules, more])
    assert host.egress_rules(SERVER, place, [rule]) == [rule, more]
    assert seen == [{"server": SERVER, "place": place, "rules": [rule]}]
    assert asked("kars_egress_rules")[0].egress_rules(SERVER, place, [rule]) == [rule]
    assert asked("kars_egress_rules", broken)[0].egress_rules(SERVER, place, [rule]) == [rule]


def test_kars_egress_objects() -> None:
    place, manifest = Place(), {"kind": "HostPolicy"}
    bare = SandboxEgress(name="s", namespace="ns", pod_labels={"app": "s"}, https=True)
    wanted = evolve(bare, https=False, objects=(manifest,))
    host, seen = asked("kars_egress_objects", lambda **_: wanted)
    assert host.egress_objects(bare, place) == wanted
    assert seen == [{"sandbox": bare, "place": place}]
    for answer in (None, broken, lambda **_: [manifest]):
        assert asked("kars_egress_objects", answer)[0].egress_objects(bare, place) == bare
