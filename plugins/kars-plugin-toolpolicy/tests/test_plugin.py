from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from kars_plugin_toolpolicy import plugin
from kars_plugin_toolpolicy.plugin import STORE, ToolPolicyPlugin
from kars_plugin_toolpolicy.testing import call, policies, said

from kars_router.errors import ConfigError
from kars_router.hookspecs import GovernanceSettings
from kars_router.plugins import Plugins

ALLOWS = {"name": "p", "default": "allow", "rateLimits": [{"name": "two", "calls": 2}]}
REDACTS = {"rules": [{"effect": "redact"}]}


def test_it_is_installed_under_its_name() -> None:
    [point] = importlib.metadata.entry_points(group="kars_router", name="toolpolicy")
    assert point.load() is plugin


def test_its_hooks_are_those_of_the_router() -> None:
    [entry] = [each for each in Plugins.load().entries() if each.name == "toolpolicy"]
    assert entry.hooks == ("kars_governors", "kars_transformers")


async def test_the_router_asks_it() -> None:
    settings = GovernanceSettings(policies=policies({"name": "p"}))
    [governor] = Plugins.load().governors(settings)
    decision = await governor.before_call(call(tool="a"), seconds=1)
    assert said(decision) == "deny p/default"
    assert decision is not None
    assert decision.source == "toolpolicy"


def test_without_policies_there_is_nothing_to_ask() -> None:
    made = ToolPolicyPlugin()
    assert made.kars_governors(GovernanceSettings()) == ()
    assert made.kars_transformers(GovernanceSettings()) == ()


def test_a_transformer_is_there_only_if_something_is_redacted() -> None:
    made = ToolPolicyPlugin()
    assert made.kars_transformers(GovernanceSettings(policies=policies(ALLOWS))) == ()
    assert len(made.kars_transformers(GovernanceSettings(policies=policies(REDACTS)))) == 1


@pytest.mark.parametrize("hook", ["kars_governors", "kars_transformers"])
def test_a_policy_that_cannot_be_compiled_is_refused_by_its_path(hook: str) -> None:
    wrong = GovernanceSettings(policies=policies({"rules": [{"effect": "deny", "when": "x"}]}))
    with pytest.raises(ConfigError, match=r"^policies\[0\]\.rules\[0\]\.when: "):
        getattr(ToolPolicyPlugin(), hook)(wrong)


async def test_what_was_counted_outlives_a_change_of_policies(tmp_path: Path) -> None:
    made = ToolPolicyPlugin()
    [before] = made.kars_governors(GovernanceSettings(policies=policies(ALLOWS), state=tmp_path))
    for number in "12":
        assert said(await before.before_call(call(tool="a", id=number))) == "allow p/default"
    changed = policies(ALLOWS, {"name": "q", "default": "allow"})
    [after] = made.kars_governors(GovernanceSettings(policies=changed, state=tmp_path))
    await before.aclose()
    denied = await after.before_call(call(tool="a", id="3"))
    assert denied is not None
    assert denied.code == "rate_limited"
    assert (tmp_path / STORE).exists()
    made.close()
    made.close()


async def test_what_was_counted_outlives_the_process(tmp_path: Path) -> None:
    settings = GovernanceSettings(policies=policies(ALLOWS), state=tmp_path)
    for number in "12":
        made = ToolPolicyPlugin()
        [governor] = made.kars_governors(settings)
        assert said(await governor.before_call(call(tool="a", id=number))) == "allow p/default"
        await governor.aclose()
        made.close()
    made = ToolPolicyPlugin()
    [governor] = made.kars_governors(settings)
    denied = await governor.before_call(call(tool="a", id="3"))
    assert denied is not None
    assert denied.code == "rate_limited"
    made.close()
