"""What a sandbox's status says, and what people are told of it."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from kars_operator import conditions, sandbox_status
from kars_operator.conditions import Condition
from kars_operator.enforcement import Heard
from kars_operator.plan import Means, Plan, compose
from kars_operator.refs import Chosen, Refusal, choose
from kars_operator.sandbox_status import Facts
from kars_operator.settings import Settings
from operator_kit import sandbox, server

from kars_router.config.resources import McpServerResource
from kars_router.egress import Place, Service
from kars_router.egress.reach import Excess, Kind
from kars_router.plugins import Plugins

PLUGINS = Plugins.load()
SERVICE = Service(selector={"app": "t"}, ports={8931: 8931})


def planned(found: McpServerResource | None = None, *, read: bool = True) -> Plan:
    chosen = choose(sandbox("box", "tools"), lambda *_: found or server(), lambda _: {})
    place = Place(namespace="team", service_lookup=lambda *_: SERVICE if read else None)
    return compose(
        sandbox("box", "tools"), chosen, Means(settings=Settings(), place=place, plugins=PLUGINS)
    )


PLAN = planned()
ECHO = Heard(pod="p", digest=PLAN.digest)
FINE = Facts(chosen=Chosen(), plan=PLAN, heard=(ECHO,))
MISSING = Refusal("McpServer", "team", "gone", "ServerMissing", "there is no McpServer team/gone")


def excess(kind: Kind, policy: str) -> Excess:
    return Excess(kind=kind, policy=policy, namespace="team", rule="", what="all ports")


@pytest.mark.parametrize(
    ("changes", "type_", "status", "reason"),
    [
        ({}, "Ready", "True", "RouterEnforcing"),
        ({}, "RefsResolved", "True", "Resolved"),
        ({}, "EgressDerived", "True", "Derived"),
        ({}, "EgressTight", "True", "NothingBeyond"),
        ({}, "RouterEnforcing", "True", "DigestEchoed"),
        ({"chosen": Chosen(refused=(MISSING,))}, "RefsResolved", "False", "ServerMissing"),
        ({"chosen": Chosen(refused=(MISSING,))}, "Ready", "False", "ServerMissing"),
        (
            {"plan": planned(server(url="http://224.0.0.1/mcp"))},
            "EgressDerived",
            "False",
            "UrlInvalid",
        ),
        ({"plan": planned(read=False)}, "EgressDerived", "True", "NamespaceWide"),
        ({"excess": [excess(Kind.EGRESS, "wide")]}, "EgressTight", "False", "OpenedByOthers"),
        ({"excess": [excess(Kind.INGRESS, "in")]}, "EgressTight", "False", "OpenedByOthers"),
        ({"excess": [excess(Kind.UNSELECTED, "")]}, "EgressTight", "False", "NotSelected"),
        ({"heard": ()}, "RouterEnforcing", "False", "AwaitingRouter"),
        (
            {"heard": [Heard(pod="p", pending=True, problem="x")]},
            "RouterEnforcing",
            "False",
            "AwaitingRouter",
        ),
        ({"heard": [Heard(pod="p", problem="x")]}, "RouterEnforcing", "False", "RouterUnreachable"),
        ({"heard": [Heard(pod="p", digest="d")]}, "RouterEnforcing", "False", "DigestDiffers"),
        (
            {"heard": [Heard(pod="p", digest="d", refused="x")]},
            "RouterEnforcing",
            "False",
            "ConfigRefused",
        ),
        # What it refused once does not matter when it enforces what is declared now.
        ({"heard": [evolve(ECHO, refused="x")]}, "RouterEnforcing", "True", "DigestEchoed"),
        (
            {"heard": [ECHO, Heard(pod="q", digest="d")]},
            "RouterEnforcing",
            "False",
            "DigestDiffers",
        ),
        ({"suspended": True}, "RouterEnforcing", "False", "Suspended"),
        ({"rollout": "quota"}, "RouterEnforcing", "False", "RolloutFailed"),
        ({"plan": evolve(PLAN, image="")}, "RouterEnforcing", "False", "NoAgentImage"),
    ],
)
def test_each_condition(changes: dict[str, Any], type_: str, status: str, reason: str) -> None:
    found = {each.type: each for each in sandbox_status.describe(evolve(FINE, **changes))}
    assert (found[type_].word, found[type_].reason) == (status, reason)
    assert found[type_].message
    ready = found["Ready"].status
    assert ready is all(each.status for each in found.values() if each.type != "Ready")


@pytest.mark.parametrize(
    ("changes", "phase"),
    [
        ({}, "Ready"),
        ({"heard": ()}, "Pending"),
        ({"heard": [Heard(pod="p", problem="x")]}, "Pending"),
        ({"chosen": Chosen(refused=(MISSING,))}, "Degraded"),
        ({"excess": [excess(Kind.EGRESS, "wide")]}, "Degraded"),
    ],
)
def test_the_phase_sums_up(changes: dict[str, Any], phase: str) -> None:
    assert sandbox_status.summary(sandbox_status.describe(evolve(FINE, **changes))) == phase


def test_a_condition_keeps_its_time_as_long_as_it_stays_as_it_is() -> None:
    first = conditions.plain([Condition("Ready", False, "A", "a")], [], generation=1, now="t1")
    second = conditions.plain([Condition("Ready", False, "B", "b")], first, generation=2, now="t2")
    third = conditions.plain([Condition("Ready", True, "C", "c")], second, generation=2, now="t3")
    assert [each[0]["lastTransitionTime"] for each in (first, second, third)] == ["t1", "t1", "t3"]
    assert second[0]["observedGeneration"] == 2
    unknown = conditions.plain([Condition("Ready", None, "D")], third, generation=2, now="t4")
    assert (unknown[0]["status"], unknown[0]["lastTransitionTime"]) == ("Unknown", "t4")


def test_a_message_is_cut_at_what_people_read() -> None:
    (found,) = conditions.plain([Condition("A", True, "B", "x" * 5000)], [], generation=1, now="t")
    assert len(found["message"]) == 1024


def test_people_are_told_each_thing_once_and_not_that_a_pod_takes_its_time() -> None:
    wrong = sandbox_status.describe(evolve(FINE, chosen=Chosen(refused=(MISSING,))))
    assert [each.reason for each in sandbox_status.news(wrong, [])] == ["ServerMissing"]
    known = conditions.plain(wrong, [], generation=1, now="t")
    assert sandbox_status.news(wrong, known) == ()
    right = sandbox_status.describe(FINE)
    assert [each.reason for each in sandbox_status.news(right, known)] == ["RouterEnforcing"]
    waiting = sandbox_status.describe(evolve(FINE, heard=()))
    assert sandbox_status.news(waiting, []) == ()


def test_the_status_names_servers_and_how_their_egress_was_derived() -> None:
    (found,) = sandbox_status.servers(PLAN)
    assert (found["name"], found["namespace"], found["egress"]) == ("tools", "team", "ServicePods")
    assert found["digest"].startswith("sha256:")
    assert "8931" in found["reason"]


def test_a_url_with_a_secret_does_not_get_into_the_status() -> None:
    made = planned(server(url="https://mcp.example.com/mcp?key=hunter2"))
    assert "hunter2" not in str(sandbox_status.servers(made))
