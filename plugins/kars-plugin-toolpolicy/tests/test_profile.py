"""Profiles in kars' own format: a table of calls, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from kars_plugin_toolpolicy.profile import read_profile
from kars_plugin_toolpolicy.testing import call, engine, said

from kars_router.config.toolpolicy import Per
from kars_router.errors import ConfigError

PROFILE = """
version: "1.0"
agent: browser
policies:
  - name: usual
    type: capability
    priority: 10
    allowed_actions: ["tool:browser_*", "tool:github.get_*", "resource:file:///srv/*", "prompt:*"]
    denied_actions: ["tool:browser_evaluate", "tool:my_server.*", "shell:rm*"]
  - name: people
    type: approval
    priority: 20
    actions: ["tool:browser_file_upload", "tool:admin__*"]
    min_approvals: 1
  - name: pace
    type: rate_limit
    actions: ["tool:browser_*"]
    max_calls: 100
    window: 60s
  - name: elsewhere
    type: rate_limit
    actions: ["inference:*"]
    max_calls: 500
    window: 60
"""


def profiled(profile: object, **more: Any) -> Any:
    return engine({"name": "p", "agtProfile": {"inline": profile}, **more})


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"tool": "browser_click"}, "allow p/agtProfile/usual"),
        ({"tool": "browser_evaluate"}, "deny p/agtProfile/usual"),
        ({"tool": "browser_file_upload"}, "approve p/agtProfile/people"),
        ({"server": "github", "tool": "get_issue"}, "allow p/agtProfile/usual"),
        ({"server": "gitlab", "tool": "get_issue"}, "deny p/default"),
        ({"server": "evil", "tool": "github.get_issue"}, "deny p/default"),
        ({"server": "my-server", "tool": "browser_click"}, "deny p/agtProfile/usual"),
        ({"server": "admin", "tool": "browser_click"}, "approve p/agtProfile/people"),
        ({"tool": "admin__x"}, "approve p/agtProfile/people"),
        ({"tool": "other"}, "deny p/default"),
        ({"resource": "file:///srv/a"}, "allow p/agtProfile/usual"),
        ({"resource": "file:///srv/../etc/a"}, "deny p/default"),
        ({"resource": "browser_click"}, "deny p/default"),
        ({"prompt": "greet"}, "allow p/agtProfile/usual"),
    ],
)
def test_a_profile_decides(asked: dict[str, Any], answer: str) -> None:
    assert said(profiled(PROFILE).decide(call(**asked))) == answer


def test_lines_stand_after_the_rules_of_the_same_priority() -> None:
    rules = [
        {"name": "same", "effect": "deny", "tools": ["browser_a"], "priority": 10},
        {"name": "lower", "effect": "deny", "tools": ["browser_b"], "priority": 9},
    ]
    both = profiled(PROFILE, rules=rules)
    assert said(both.decide(call(tool="browser_a"))) == "deny p/same"
    assert said(both.decide(call(tool="browser_b"))) == "allow p/agtProfile/usual"


def test_a_pattern_may_cover_every_kind() -> None:
    everything = {"policies": [{"type": "capability", "allowed_actions": ["*"]}]}
    for kind in ("tool", "resource", "prompt"):
        asked: dict[str, Any] = {kind: "a"}
        decision = profiled(everything).decide(call(**asked))
        assert said(decision) == "allow p/agtProfile/policies[0]"


def test_a_rate_limit_becomes_one_of_the_policy_for_each_agent() -> None:
    text = PROFILE.partition("  - name: elsewhere")[0]
    [limit] = profiled(text).settings[0].rate_limits
    assert (limit.name, limit.tools, limit.calls) == ("pace", ("browser_*",), 100)
    assert (limit.window, limit.per) == (60.0, (Per.AGENT,))


def test_a_limit_on_what_is_no_call_is_none() -> None:
    assert len(profiled(PROFILE).settings[0].rate_limits) == 1


def test_actions_of_other_kinds_are_noted() -> None:
    notes = read_profile(PROFILE).notes
    assert notes == [f"the action {a} is none of an MCP call" for a in ("shell:rm*", "inference:*")]
    explained = profiled(PROFILE).explain(call(tool="a"))
    assert any("shell:rm*" in step.why for step in explained)


@pytest.mark.parametrize(
    ("policy", "path", "complaint"),
    [
        (
            {"type": "approval", "actions": ["tool:*"], "min_approvals": 2},
            ".min_approvals",
            "must be 1",
        ),
        (
            {"type": "approval", "actions": ["tool:*"], "min_approvals": 0},
            ".min_approvals",
            "from 1",
        ),
        (
            {"type": "approval", "actions": ["tool:*"], "min_approvals": True},
            ".min_approvals",
            "from 1",
        ),
        ({"type": "approval"}, ".actions", "list of actions"),
        ({"type": "approval", "actions": []}, ".actions", "list of actions"),
        ({"type": "capabilty"}, ".type", "did you mean 'capability'?"),
        ({"allowed_actions": ["tool:*"]}, ".type", "must be one of"),
        ({"type": "capability"}, "", "neither"),
        (
            {"type": "capability", "allowed_actions": "tool:*"},
            ".allowed_actions",
            "list of actions",
        ),
        ({"type": "capability", "allowed_actions": [5]}, ".allowed_actions[0]", "must be a string"),
        ({"type": "capability", "denied_actions": ["rm"]}, ".denied_actions[0]", "must begin with"),
        (
            {"type": "capability", "denied_actions": ["tool:[a"]},
            ".denied_actions[0]",
            "without its",
        ),
        ({"type": "capability", "denied_action": ["tool:a"]}, ".denied_action", "not a known key"),
        (
            {"type": "capability", "allowed_actions": ["*"], "conditions": {}},
            ".conditions",
            "not a known key",
        ),
        (
            {"type": "capability", "allowed_actions": ["*"], "priority": "high"},
            ".priority",
            "whole number",
        ),
        ({"type": "rate_limit", "actions": ["tool:*"], "window": 60}, ".max_calls", "whole number"),
        ({"type": "rate_limit", "actions": ["tool:*"], "max_calls": 5}, ".window", "not null"),
        (
            {"type": "rate_limit", "actions": ["prompt:*"], "max_calls": 5, "window": 5},
            ".actions[0]",
            "must be tool:",
        ),
        ("allow", "", "must be a mapping"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(
    policy: Any, path: str, complaint: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        profiled({"policies": [policy]})
    place = f"policies[0].agtProfile.inline.policies[0]{path}: "
    assert any(p.startswith(place) and complaint in p for p in refused.value.problems)


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        ("policies: [", "policies[0].agtProfile.inline: line 1"),
        ("- a", "policies[0].agtProfile.inline: must be a profile, not a list"),
        ("version: 1", "policies[0].agtProfile.inline.policies: must be a list"),
        ({"policies": []}, "policies[0].agtProfile.inline.policies: must be a list"),
        ({"policies": [], "trust": 5}, "policies[0].agtProfile.inline.trust: is not a known key"),
        ("policies: []\npolicies: []", "policies[0].agtProfile.inline.policies: is given twice"),
    ],
)
def test_a_profile_that_is_none(profile: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        profiled(profile)
    assert any(each.startswith(problem) for each in refused.value.problems)
