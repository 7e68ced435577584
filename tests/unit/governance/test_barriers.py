"""What plugins do wrong to governance, and what becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from attrs import define
from governance_kit import Scripted
from trio.testing import MockClock

from kars_router.barriers import GuardedGovernor, GuardedTransformer, TransformError
from kars_router.errors import ConfigError, PluginError
from kars_router.hookspecs import GovernanceSettings, Governor, hookimpl
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling
from kars_router.plugins import Plugins
from kars_router.telemetry import Metrics

CALL = GovernedCall(id="1", agent="a", server="s", method="tools/call", name="t")
END = CallEnd(decision=Decision(ruling=Ruling.ALLOW), fate=Fate.EXECUTED)
SETTINGS = GovernanceSettings()


async def test_a_decision_names_its_plugin() -> None:
    governor = GuardedGovernor("mine", Scripted(Decision(ruling=Ruling.ALLOW, source="faked")))
    decision = await governor.before_call(CALL, seconds=1)
    assert decision is not None
    assert decision.source == "mine"


@pytest.mark.parametrize("wrong", [ValueError("x"), "allow", 1, True], ids=repr)
async def test_what_is_no_decision_is_a_denial_and_counted(wrong: Any) -> None:
    metrics = Metrics()
    governor = GuardedGovernor("mine", Scripted(wrong, wrong), metrics)
    for said in (
        await governor.before_call(CALL, seconds=1),
        await governor.after_call(CALL, END, seconds=1),
    ):
        assert said is not None
        assert (said.ruling, said.code) == (Ruling.DENY, "policy_error")
    name = "kars_plugin_errors_total"
    for hook in ("before_call", "after_call"):
        assert metrics.registry.get_sample_value(name, {"plugin": "mine", "hook": hook}) == 1


async def test_a_slow_governor_is_not_waited_for(autojump_clock: MockClock) -> None:
    slow = Scripted(Decision(ruling=Ruling.ALLOW), slow=60, slow_after=60)
    governor = GuardedGovernor("mine", slow)
    asked: tuple[Callable[[], Awaitable[Decision | None]], ...] = (
        lambda: governor.before_call(CALL, seconds=2),
        lambda: governor.after_call(CALL, END, seconds=2),
    )
    for ask in asked:
        before = trio.current_time()
        decision = await ask()
        assert decision is not None
        assert (decision.ruling, decision.code) == (Ruling.DENY, "policy_error")
        assert trio.current_time() - before == 2


async def test_only_a_denial_withholds_a_result() -> None:
    for ruling in (Ruling.ALLOW, Ruling.APPROVE):
        governor = GuardedGovernor("mine", Scripted(None, Decision(ruling=ruling)))
        assert await governor.after_call(CALL, END, seconds=1) is None


async def test_closing_is_bounded_and_quiet(autojump_clock: MockClock) -> None:
    @define
    class Stuck(Scripted):
        async def aclose(self) -> None:
            await trio.sleep_forever()

    @define
    class Broken(Scripted):
        async def aclose(self) -> None:
            raise OSError("full")

    before = trio.current_time()
    await GuardedGovernor("mine", Stuck()).aclose()
    await GuardedGovernor("mine", Broken()).aclose()
    assert trio.current_time() - before == 2


@pytest.mark.parametrize("wrong", [None, "text", {}], ids=repr)
def test_a_transformer_that_returns_no_bytes_lets_nothing_pass(wrong: Any) -> None:
    transformer = GuardedTransformer("mine", Scripted(rewrite=lambda _: wrong), Metrics())
    with pytest.raises(TransformError):
        transformer.outgoing(CALL)
    with pytest.raises(TransformError):
        transformer.incoming(CALL, b"{}")


@define
class Making:
    """A plugin whose hook does as it is told."""

    made: Any

    @hookimpl
    def kars_governors(self, settings: GovernanceSettings) -> Sequence[Governor]:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made  # type: ignore[no-any-return]


def hosted(*plugins: object) -> Plugins:
    host = Plugins()
    for index, plugin in enumerate(plugins):
        host.register(plugin, f"plugin{index}")
    return host


def test_a_plugin_that_cannot_make_its_governors_refuses_the_configuration() -> None:
    with pytest.raises(PluginError, match="plugin0: kars_governors failed"):
        hosted(Making(ValueError("x"))).governors(SETTINGS)
    with pytest.raises(PluginError, match="kars_governors failed"):
        hosted(Making(5)).governors(SETTINGS)
    problem = ConfigError(["policies[0]: no"])
    with pytest.raises(ConfigError, match=r"policies\[0\]: no"):
        hosted(Making(problem)).governors(SETTINGS)


def test_policies_need_somebody_who_enforces_them() -> None:
    policies = GovernanceSettings(policies=[object()])
    with pytest.raises(ConfigError, match="enforced by no plugin"):
        hosted(Making([Scripted()])).governors(policies)

    @define
    class Enforcing(Scripted):
        enforces_policies: bool = True

    (found,) = hosted(Making([Enforcing()])).governors(policies)
    assert found.plugin == "plugin0"


def test_a_plugin_without_governors_is_none() -> None:
    assert hosted(Making(None), Making([])).governors(SETTINGS) == ()


async def test_a_plugin_that_cannot_make_its_governors_stops_calls_and_not_the_router() -> None:
    host = hosted(Making(ValueError("x")))
    (governor,) = host.governors(SETTINGS, strict=False)
    said = await governor.before_call(CALL, seconds=1)
    assert said is not None
    assert (said.ruling, said.source, said.code) == (Ruling.DENY, "plugin0", "policy_error")
    assert await governor.after_call(CALL, END, seconds=1) is None
    await governor.aclose()
    # Policies that it may have been there for are not passed over either.
    assert len(host.governors(GovernanceSettings(policies=[object()]), strict=False)) == 1


def test_a_plugin_that_cannot_make_its_transformers_lets_nothing_pass() -> None:
    class Transforming:
        @hookimpl
        def kars_transformers(self, settings: GovernanceSettings) -> Any:
            raise ValueError("x")

    with pytest.raises(PluginError, match="kars_transformers failed"):
        hosted(Transforming()).transformers(SETTINGS)
    (transformer,) = hosted(Transforming()).transformers(SETTINGS, strict=False)
    with pytest.raises(TransformError):
        transformer.outgoing(CALL)
    with pytest.raises(TransformError):
        transformer.incoming(CALL, b"{}")


async def test_a_ruling_by_its_name_is_that_ruling() -> None:
    no: Any = "deny"
    governor = GuardedGovernor("mine", Scripted(Decision(ruling=no), Decision(ruling=no)))
    for said in (
        await governor.before_call(CALL, seconds=1),
        await governor.after_call(CALL, END, seconds=1),
    ):
        assert said is not None
        assert said.ruling is Ruling.DENY
    with pytest.raises(ValueError, match="maybe"):
        Decision(ruling="maybe")
