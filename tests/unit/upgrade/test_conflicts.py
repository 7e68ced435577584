"""Conflicts: the API server's texts and causes, and what `managedFields` adds to them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from kars_router.kube.errors import Cause, error_of
from kars_router.upgrade.conflicts import REASON, Conflict, blocking, find, owner_of, said
from kars_router.upgrade.ownership import APPLY, MISSING, UPDATE, Owner

RECORDED = Path(__file__).parent / "recorded"
MAIN = '.spec.template.spec.containers[name="main"]'


def recorded(name: str) -> dict[str, Any]:
    """What a real API server answered."""
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return found


def owned(manager: str, fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An entry of `managedFields`."""
    entry = {"manager": manager, "operation": UPDATE, "apiVersion": "v1", "fieldsV1": fields}
    return {**entry, "fieldsType": "FieldsV1", **more}


def config(data: dict[str, str], *managed: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "conf", "namespace": "there", "managedFields": list(managed)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


WANTED = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}}
KEY: dict[str, Any] = {"f:data": {"f:key": {}}}


def cause(message: str, field: str = ".data.key", reason: str = REASON) -> Cause:
    return Cause(reason, message, field)


@pytest.mark.parametrize(
    ("message", "owner"),
    [
        ('conflict with "a" using v1', Owner("a", UPDATE, "v1")),
        ('conflict with "a"', Owner("a", APPLY)),
        (
            'conflict with "kubectl" with subresource "scale" using apps/v1',
            Owner("kubectl", UPDATE, "apps/v1", "scale"),
        ),
        (
            'conflict with "kubectl-edit" using apps/v1 at 2030-01-02T03:04:05Z',
            Owner("kubectl-edit", UPDATE, "apps/v1"),
        ),
        (
            'conflict with "k" with subresource "status" using apps/v1 at 2030-01-02T03:04:05Z',
            Owner("k", UPDATE, "apps/v1", "status"),
        ),
        ('conflict with "a" with subresource "status"', Owner("a", APPLY, "", "status")),
        (r'conflict with "a \"b\" \\ c" using v1', Owner(r'a "b" \ c', UPDATE, "v1")),
        ('conflict with "k8s.io/using v1: x" using v1', Owner("k8s.io/using v1: x", UPDATE, "v1")),
        (r'conflict with "\x7f" using v1', Owner(r"\x7f", UPDATE, "v1")),  # Go's own escape
        ("conflict with somebody", None),
        ("the object has been modified", None),
    ],
)
def test_the_owner_that_a_cause_names(message: str, owner: Owner | None) -> None:
    assert owner_of(message) == owner


SINGLE = 'Apply failed with 1 conflict: conflict with "a" using v1: .data.key'
SEVERAL = (
    'Apply failed with 4 conflicts: conflicts with "gitops":\n- .spec.replicas\n'
    'conflicts with "kubectl" with subresource "scale" using apps/v1 at 2030-01-02T03:04:05Z:\n'
    '- .spec.ports[port=80,protocol="TCP"].name\n'
    '- .metadata.labels.a - b\nconflicts with "z" using v1:\n- .data.x'
)


def test_the_text_of_a_whole_error() -> None:
    assert list(said(SINGLE)) == [(Owner("a", UPDATE, "v1"), ".data.key")]
    scale = Owner("kubectl", UPDATE, "apps/v1", "scale")
    expected = [
        (Owner("gitops", APPLY), ".spec.replicas"),
        (scale, '.spec.ports[port=80,protocol="TCP"].name'),
        (scale, ".metadata.labels.a - b"),
        (Owner("z", UPDATE, "v1"), ".data.x"),
    ]
    assert list(said(SEVERAL)) == expected
    # As errors of our client have it.
    assert list(said(SEVERAL.replace("\n", " "))) == expected
    assert list(said("something else: .data.key")) == []


def test_what_a_real_server_answered() -> None:
    answer = recorded("deployment")
    error = error_of(answer["refusal"], http_status=409)
    found = find(
        live=answer["live"],
        wanted=answer["wanted"],
        result=answer["forced"],
        causes=error.causes,
        message=error.message,
    )
    assert [(each.owner.manager, each.field, each.theirs, each.ours) for each in found] == [
        ("kubectl-annotate", ".metadata.annotations.a.b/c", "y", "x"),
        ("kubectl-label", ".metadata.labels.app.kubernetes.io/version", "9", "1"),
        ("kubectl", ".spec.replicas", 3, 1),
        ("gitops", f'{MAIN}.env[name="BAR"].value', "zzz", "b"),
        ("kubectl-set", f'{MAIN}.env[name="FOO"].value', "theirs", "one"),
        ("kubectl-set", f"{MAIN}.image", "reg.example.com/a:2", "reg.example.com/a:1"),
        (
            "kubectl-set",
            '.spec.template.spec.containers[name="side"].env[name="FOO"].value',
            "theirs",
            "s",
        ),
    ]
    assert {each.owner.subresource for each in found if each.owner.manager == "kubectl"} == {
        "scale"
    }
    assert all(each.index is not None and each.path and each.forceable for each in found)


def test_the_two_sources_agree() -> None:
    """What the server names, and what a forced dry run takes, are the same."""
    answer = recorded("deployment")
    arguments = {"live": answer["live"], "wanted": answer["wanted"], "result": answer["forced"]}
    causes = error_of(answer["refusal"], http_status=409).causes
    assert find(**arguments) == find(**arguments, causes=causes)
    # Even where the server says less, as our client keeps no more than a hundred causes.
    assert find(**arguments, causes=causes[:1]) == find(**arguments)


def test_without_causes_the_text_counts() -> None:
    live = config({"key": "theirs"}, owned("a", KEY))
    found = find(live=live, wanted={**WANTED, "data": {"key": "x"}}, result=None, message=SINGLE)
    assert [(each.field, each.theirs, each.ours) for each in found] == [
        (".data.key", "theirs", "x")
    ]


def test_an_owner_that_managed_fields_do_not_have() -> None:
    live = config({"key": "theirs"}, owned("b", KEY))
    found = find(
        live=live, wanted=WANTED, result=None, causes=[cause('conflict with "a" using v1')]
    )
    assert found == (Conflict(field=".data.key", owner=Owner("a", UPDATE, "v1")),)
    assert (found[0].theirs, found[0].index) == (MISSING, None)


def test_causes_of_another_kind_are_none() -> None:
    causes = [cause('conflict with "a" using v1', reason="FieldValueInvalid"), cause("oh")]
    assert find(live=config({}), wanted=WANTED, result=None, causes=causes) == ()


def test_of_two_with_one_name_the_one_that_is_meant() -> None:
    live = config(
        {"key": "x"},
        owned("a", KEY, operation=APPLY),
        owned("a", KEY, apiVersion="v1beta1"),
        owned("a", KEY),
    )
    for message, index in (
        ('conflict with "a"', 0),
        ('conflict with "a" using v1beta1', 1),
        ('conflict with "a" using v1', 2),
        ('conflict with "a" using v9', 0),  # whatever: it is one of them
    ):
        (found,) = find(live=live, wanted=WANTED, result=None, causes=[cause(message)])
        assert found.index == index


def test_helms_own_fields_are_no_conflict() -> None:
    live = config({"key": "old"}, owned("helm", KEY, operation=APPLY), owned("helm", KEY))
    arguments: dict[str, Any] = {"live": live, "wanted": WANTED, "result": None}
    causes = [cause('conflict with "helm" using v1')]
    assert find(**arguments, causes=causes, migrates=True) == ()
    # Without the migration Helm would fail on what it has once updated itself.
    (found,) = find(**arguments, causes=causes)
    assert found.owner == Owner("helm", UPDATE, "v1")


def test_helm_through_a_subresource_is_somebody_else() -> None:
    live = config({"key": "old"}, owned("helm", KEY, subresource="scale"))
    causes = [cause('conflict with "helm" with subresource "scale" using v1')]
    assert len(find(live=live, wanted=WANTED, result=None, causes=causes, migrates=True)) == 1


def test_what_is_overwritten_without_a_word_is_a_conflict() -> None:
    """As the `stringData` of a Secret does it."""
    live = config(
        {"key": "theirs", "same": "x"}, owned("a", {"f:data": {"f:key": {}, "f:same": {}}})
    )
    result = deepcopy(live)
    result["data"]["key"] = "ours"
    (found,) = find(live=live, wanted=WANTED, result=result)
    assert (found.field, found.theirs, found.ours) == (".data.key", "theirs", "ours")


def test_an_element_is_not_overwritten_by_what_changes_in_it() -> None:
    item: dict[str, Any] = {
        "f:spec": {"f:items": {".": {}, 'k:{"name":"a"}': {".": {}, "f:name": {}}}}
    }
    live = config({}, owned("a", item)) | {"spec": {"items": [{"name": "a", "value": 1}]}}
    result = deepcopy(live) | {"spec": {"items": [{"name": "a", "value": 2}]}}
    assert find(live=live, wanted=WANTED, result=result) == ()


def test_what_is_no_longer_there_is_not_lost() -> None:
    live = config({"key": "x"}, owned("a", {"f:data": {"f:gone": {}}}))
    assert find(live=live, wanted=WANTED, result=config({"key": "x"})) == ()


def variable(**of: Any) -> dict[str, Any]:
    container = {"name": "main", "env": [{"name": "PLACE", **of}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }


SOURCE = {"fieldRef": {"fieldPath": "metadata.namespace"}}


@pytest.mark.parametrize(
    ("theirs", "ours", "fields"),
    [
        ({"value": "x"}, {"valueFrom": SOURCE}, {"f:value": {}}),
        ({"valueFrom": SOURCE}, {"value": "x"}, {"f:valueFrom": {"f:fieldRef": {}}}),
    ],
)
def test_a_value_and_a_source_of_one_variable(
    theirs: dict[str, Any], ours: dict[str, Any], fields: dict[str, Any]
) -> None:
    tree: dict[str, Any] = {'k:{"name":"PLACE"}': fields}
    for step in ("f:env", 'k:{"name":"main"}', "f:containers", "f:spec", "f:template", "f:spec"):
        tree = {step: tree}
    live = variable(**theirs)
    live["metadata"]["managedFields"] = [owned("kubectl-set", tree)]
    (found,) = find(live=live, wanted=variable(**ours), result=None)
    assert (found.owner.manager, found.forceable) == ("kubectl-set", False)
    assert found.field.startswith(f'{MAIN}.env[name="PLACE"].value')
    assert found.ours == next(iter(ours.values()))
    assert blocking([found], force=True) == (found,)
    # With both of one kind it is an ordinary conflict, which the server names.
    assert find(live=live, wanted=variable(**theirs), result=None) == ()


def test_what_force_leaves_in_the_way() -> None:
    owner = Owner("a", UPDATE, "v1")
    easy = Conflict(field=".a", owner=owner)
    hard = Conflict(field=".b", owner=owner, forceable=False)
    assert blocking([easy, hard], force=False) == (easy, hard)
    assert blocking([easy, hard], force=True) == (hard,)
