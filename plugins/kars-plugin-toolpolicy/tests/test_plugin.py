from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kars_plugin_toolpolicy import plugin
from kars_plugin_toolpolicy.plugin import STORE, ToolPolicyPlugin
from kars_plugin_toolpolicy.testing import call, policies, said

from kars_router.errors import ConfigError, PluginError
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
    governors = Plugins.load().governors(settings)
    [governor] = [each for each in governors if each.plugin == "toolpolicy"]
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


def held_open(directory: Path) -> int:
    """How many descriptors of this process are files of a directory."""
    found = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    return sum(each.startswith(f"{directory}/") for each in found)


async def test_a_store_is_closed_when_the_last_one_has_let_go_of_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    made = ToolPolicyPlugin()
    [here] = made.kars_governors(GovernanceSettings(policies=policies(ALLOWS), state=first))
    [again] = made.kars_governors(GovernanceSettings(policies=policies(REDACTS), state=first))
    [there] = made.kars_governors(GovernanceSettings(policies=policies(ALLOWS), state=second))
    assert held_open(first)
    await here.aclose()
    await here.aclose()
    assert held_open(first)
    await again.aclose()
    assert not held_open(first)
    # The other router goes on counting, and in its own file.
    for number in "12":
        assert said(await there.before_call(call(tool="a", id=number))) == "allow p/default"
    await there.aclose()
    assert not held_open(second)
    [there] = made.kars_governors(GovernanceSettings(policies=policies(ALLOWS), state=second))
    assert "rate_limited" in said(await there.before_call(call(tool="a", id="3")))
    [here] = made.kars_governors(GovernanceSettings(policies=policies(ALLOWS), state=first))
    assert said(await here.before_call(call(tool="a", id="4"))) == "allow p/default"
    made.close()
    assert not held_open(tmp_path)


async def test_what_is_counted_in_memory_outlives_a_while_without_policies() -> None:
    made = ToolPolicyPlugin()
    settings = GovernanceSettings(policies=policies(ALLOWS))
    [before] = made.kars_governors(settings)
    for number in "12":
        await before.before_call(call(tool="a", id=number))
    assert made.kars_governors(GovernanceSettings()) == ()
    await before.aclose()
    [after] = made.kars_governors(settings)
    assert "rate_limited" in said(await after.before_call(call(tool="a", id="3")))


async def test_a_directory_that_cannot_be_used_leaves_the_one_in_use_alone(tmp_path: Path) -> None:
    made = ToolPolicyPlugin()
    good, bad = tmp_path / "good", tmp_path / "file"
    bad.write_text("")
    [governor] = made.kars_governors(GovernanceSettings(policies=policies(ALLOWS), state=good))
    with pytest.raises(PluginError):
        made.kars_governors(GovernanceSettings(policies=policies(ALLOWS), state=bad))
    await governor.before_call(call(tool="a", id="1"))
    assert held_open(good)
    await governor.aclose()
    assert not held_open(tmp_path)


def test_it_takes_no_memory_where_there_are_no_policies() -> None:
    program = (
        "import sys\n"
        "from kars_plugin_toolpolicy import plugin\n"
        "from kars_router.hookspecs import GovernanceSettings\n"
        "none = GovernanceSettings(policies=())\n"
        "assert not plugin.kars_governors(none) and not plugin.kars_transformers(none)\n"
        "heavy = {'cel_expr_python', 'google', 'jsonschema_rs', 're2', 'sqlite3'}\n"
        "assert not heavy & {name.partition('.')[0] for name in sys.modules}, sorted(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
