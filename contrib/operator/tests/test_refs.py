"""Which references lead to something."""

from __future__ import annotations

from typing import Any

import pytest
from kars_operator.refs import Unusable, choose
from operator_kit import UNUSABLE, policy, sandbox, server

from kars_router.config.toolpolicy import Default

ELSEWHERE: dict[str, Any] = {"metadata": {"namespace": "tools"}}
REF: dict[str, Any] = {"governance": {"mcpServerRefs": [{"name": "tools", "namespace": "tools"}]}}
LABELLED: dict[str, Any] = {"metadata": {"labels": {"team": "a"}}}


@pytest.mark.parametrize(
    ("asking", "found", "reason"),
    [
        ({}, server(), ""),
        ({}, None, "ServerMissing"),
        ({}, UNUSABLE, "ServerInvalid"),
        ({}, server(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), "ServerMissing"),
        ({}, server(url=None, managed={"preset": "playwright"}), "ServerUnusable"),
        ({}, server(oauth={"issuer": "https://id.example.com"}), "ServerUnusable"),
        ({}, server(allowedSandboxes={"matchLabels": {"team": "a"}}), "ServerNotAllowed"),
        (LABELLED, server(allowedSandboxes={"matchLabels": {"team": "a"}}), ""),
        (LABELLED, server(allowedSandboxes={"matchLabels": {"team": "b"}}), "ServerNotAllowed"),
        (
            LABELLED,
            server(allowedSandboxes={"matchLabels": {"t": "", "team": "a"}}),
            "ServerNotAllowed",
        ),
        (REF, server(**ELSEWHERE), "ServerNotAllowed"),
        (REF, server(**ELSEWHERE, allowedSandboxes={"namespaces": ["team"]}), ""),
        (REF, server(**ELSEWHERE, allowedSandboxes={"namespaces": ["*"]}), ""),
        (REF, server(**ELSEWHERE, allowedSandboxes={"namespaces": ["teams"]}), "ServerNotAllowed"),
        (
            REF,
            server(**ELSEWHERE, allowedSandboxes={"matchLabels": {"team": "a"}}),
            "ServerNotAllowed",
        ),
        (
            {**REF, **LABELLED},
            server(
                **ELSEWHERE, allowedSandboxes={"matchLabels": {"team": "a"}, "namespaces": ["team"]}
            ),
            "",
        ),
        ({}, server(allowedSandboxes={"namespaces": ["elsewhere"]}), ""),
    ],
)
def test_a_reference_leads_to_a_server_that_allows_it(
    asking: dict[str, Any], found: Any, reason: str
) -> None:
    asked: list[tuple[str, str]] = []

    def look_up(namespace: str, name: str) -> Any:
        asked.append((namespace, name))
        return found

    given = {"governance": {"mcpServerRefs": [{"name": "tools"}]}, **asking}
    chosen = choose(sandbox(**given), look_up, lambda _: {})
    assert asked == [("tools" if "namespace" in str(given["governance"]) else "team", "tools")]
    assert [each.reason for each in chosen.refused] == ([reason] if reason else [])
    assert [each.meta.name for each in chosen.servers] == ([] if reason else ["tools"])


def test_one_refusal_leaves_the_others_alone() -> None:
    known = {"a": server("a"), "c": server("c")}
    chosen = choose(sandbox("box", "a", "b", "c"), lambda _, name: known.get(name), lambda _: {})
    assert [each.meta.name for each in chosen.servers] == ["a", "c"]
    (refused,) = chosen.refused
    assert (refused.kind, refused.namespace, refused.name) == ("McpServer", "team", "b")
    assert refused.message == "McpServer team/b is not there; apply it"


def test_the_older_way_to_refer_to_one_server_still_leads_there() -> None:
    asking = sandbox(governance={"mcpServerRefs": [], "mcpServerRef": {"name": "tools"}})
    chosen = choose(asking, lambda *_: server(), lambda _: {})
    assert [each.meta.name for each in chosen.servers] == ["tools"]


BY_NAME: dict[str, Any] = {"governance": {"toolPolicyRef": {"name": "rules"}}}
PICKS: dict[str, Any] = {"appliesTo": {"sandboxMatchLabels": {"team": "a"}}, "default": "allow"}
BROKEN = Unusable(problems=("spec.rules: must be a list",))
MEANT_FOR_A = Unusable(problems=("spec.rules: must be a list",), labels={"team": "a"})


@pytest.mark.parametrize(
    ("asking", "known", "expected", "reason"),
    [
        ({}, {}, {}, ""),
        (BY_NAME, {"rules": policy(default="allow")}, {"rules": Default.ALLOW}, ""),
        (BY_NAME, {}, {"rules": Default.DENY}, "PolicyMissing"),
        (BY_NAME, {"rules": BROKEN}, {"rules": Default.DENY}, "PolicyInvalid"),
        # Nobody knows whom this one was for.
        ({}, {"rules": BROKEN}, {}, ""),
        # But of this one it is known.
        (LABELLED, {"rules": MEANT_FOR_A}, {"rules": Default.DENY}, "PolicyInvalid"),
        ({}, {"rules": MEANT_FOR_A}, {}, ""),
        (LABELLED, {"rules": policy(**PICKS)}, {"rules": Default.ALLOW}, ""),
        ({}, {"rules": policy(**PICKS)}, {}, ""),
        # Without labels it picks nobody.
        (LABELLED, {"rules": policy(default="allow")}, {}, ""),
        (
            {**BY_NAME, **LABELLED},
            {"rules": policy(), "more": policy("more", **PICKS)},
            {"more": Default.ALLOW, "rules": Default.DENY},
            "",
        ),
    ],
)
def test_policies_are_named_or_pick_sandboxes_and_what_is_unclear_denies(
    asking: dict[str, Any], known: dict[str, Any], expected: dict[str, Default], reason: str
) -> None:
    chosen = choose(sandbox(**asking), lambda *_: None, lambda _: known)
    assert {each.name: each.default for each in chosen.policies} == expected
    assert [each.reason for each in chosen.refused] == ([reason] if reason else [])


def test_a_router_does_not_choose_sandboxes() -> None:
    found = choose(sandbox(**LABELLED), lambda *_: None, lambda _: {"rules": policy(**PICKS)})
    (given,) = found.policies
    assert not given.applies_to.sandbox_match_labels
