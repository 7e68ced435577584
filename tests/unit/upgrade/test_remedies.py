"""Commands that hand fields back; what a real kubectl makes of them is in tests/cluster."""

from __future__ import annotations

import json
import shlex
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from kars_router.kube.errors import error_of
from kars_router.kube.resources import CONFIG_MAPS, CRDS, DEPLOYMENTS, Resource
from kars_router.upgrade.conflicts import Conflict, find
from kars_router.upgrade.ownership import Owner, entries
from kars_router.upgrade.remedies import hand_back

RECORDED = Path(__file__).parent / "recorded" / "deployment.json"


def conflicts_of(live: dict[str, Any], *paths: tuple[int, tuple[str, ...]]) -> list[Conflict]:
    """Conflicts about paths of the owners at these places."""
    return [
        Conflict(field="x", owner=entries(live)[index].owner, path=path, index=index)
        for index, path in paths
    ]


def patched(live: dict[str, Any], command: str) -> dict[str, Any]:
    """The object after a patch of tests and removals (RFC 6902)."""
    words = shlex.split(command)
    assert words[:2] == ["kubectl", "patch"]
    new = deepcopy(live)
    for each in json.loads(words[words.index("-p") + 1]):
        parts = [part.replace("~1", "/").replace("~0", "~") for part in each["path"].split("/")[1:]]
        place: Any = new
        for part in parts[:-1]:
            place = place[int(part)] if isinstance(place, list) else place[part]
        last = int(parts[-1]) if isinstance(place, list) else parts[-1]
        if each["op"] == "test":
            assert place[last] == each["value"]
        else:
            assert each["op"] == "remove"
            del place[last]
    return new


def test_commands_for_what_a_real_server_answered() -> None:
    answer = json.loads(RECORDED.read_text(encoding="utf-8"))
    causes = error_of(answer["refusal"], http_status=409).causes
    live = answer["live"]
    found = find(live=live, wanted=answer["wanted"], result=answer["forced"], causes=causes)
    patch, *variables = hand_back(found, live, DEPLOYMENTS)
    assert patch.startswith("kubectl patch deployments.apps app -n recorded --type=json -p ")
    assert variables == [
        "kubectl set env deployment/app -n recorded -c main BAR-",
        "kubectl set env deployment/app -n recorded -c main FOO-",
        "kubectl set env deployment/app -n recorded -c side FOO-",
    ]
    after = patched(live, patch)
    kept = [each["manager"] for each in after["metadata"]["managedFields"]]
    # Who owned nothing else is gone; of whoever sets variables, only the image is taken.
    assert kept == ["gitops", "helm", "kube-controller-manager", "kubectl-set"]
    assert "f:image" not in json.dumps(after["metadata"]["managedFields"][-1])
    assert {**after, "metadata": 0} == {**live, "metadata": 0}


VARIABLE = ("f:env", 'k:{"name":"A"}', "f:value")


def workload(kind: str, plural: str, group: str, *names: str, job: bool = False) -> Any:
    containers = [{"name": name, "image": "x"} for name in names]
    spec: dict[str, Any] = {"template": {"spec": {"containers": containers}}}
    if job:
        spec = {"jobTemplate": {"spec": spec}}
    live = {
        "apiVersion": f"{group}/v1",
        "kind": kind,
        "metadata": {"name": "app", "namespace": "there"},
        "spec": spec,
    }
    return live, Resource(group, "v1", plural, kind)


@pytest.mark.parametrize(
    ("what", "above"),
    [
        (("DaemonSet", "daemonsets", "apps"), ("f:spec", "f:template", "f:spec")),
        (("StatefulSet", "statefulsets", "apps"), ("f:spec", "f:template", "f:spec")),
        (
            ("CronJob", "cronjobs", "batch"),
            ("f:spec", "f:jobTemplate", "f:spec", "f:template", "f:spec"),
        ),
    ],
)
def test_variables_of_other_workloads(what: tuple[str, str, str], above: tuple[str, ...]) -> None:
    live, resource = workload(*what, "main", job=what[0] == "CronJob")
    path = (*above, "f:containers", 'k:{"name":"main"}', *VARIABLE)
    conflict = Conflict(field="x", owner=Owner("a", "Update"), path=path, index=0)
    assert hand_back([conflict], live, resource) == (
        f"kubectl set env {what[0].lower()}/app -n there A-",
    )


def test_a_variable_is_unset_once_for_each_container() -> None:
    live, resource = workload("Deployment", "deployments", "apps", "main", "side")
    above = ("f:spec", "f:template", "f:spec", "f:containers")
    name = Conflict(
        field="x", owner=Owner("a", "Update"), path=(*above, 'k:{"name":"side"}', *VARIABLE)
    )
    other = Conflict(field="y", owner=Owner("b", "Apply"), path=name.path)
    assert hand_back([name, other], live, resource, ("--context", "my cluster")) == (
        "kubectl set env deployment/app -n there -c side A- --context 'my cluster'",
    )


def test_a_field_that_nobody_can_find_has_no_command() -> None:
    live = {"kind": "ConfigMap", "metadata": {"name": "a", "managedFields": []}}
    assert hand_back([Conflict(field=".x", owner=Owner("a", "Apply"))], live, CONFIG_MAPS) == ()


def owned_by(*trees: dict[str, Any]) -> dict[str, Any]:
    listed = [
        {
            "manager": f"m{number}",
            "operation": "Update",
            "apiVersion": "v1",
            "fieldsV1": tree,
            **({"subresource": "scale"} if number == 1 else {}),
        }
        for number, tree in enumerate(trees)
    ]
    return {"kind": "ConfigMap", "metadata": {"name": "it's", "managedFields": listed}}


def test_an_object_in_no_namespace_with_a_name_to_be_quoted() -> None:
    live = owned_by({"f:a/b~c": {}, "f:kept": {}})
    (command,) = hand_back(conflicts_of(live, (0, ("f:a/b~c",))), live, CRDS)
    words = shlex.split(command)
    assert words[:4] == [
        "kubectl",
        "patch",
        "customresourcedefinitions.apiextensions.k8s.io",
        "it's",
    ]
    assert "-n" not in words
    assert patched(live, command)["metadata"]["managedFields"][0]["fieldsV1"] == {"f:kept": {}}


def test_entries_go_from_the_last_one_on() -> None:
    live = owned_by({"f:a": {}}, {"f:b": {"f:c": {}}}, {"f:d": {}})
    found = conflicts_of(live, (0, ("f:a",)), (1, ("f:b", "f:c")))
    (command,) = hand_back(found, live, CONFIG_MAPS)
    after = patched(live, command)["metadata"]["managedFields"]
    assert [each["manager"] for each in after] == ["m2"]


def test_an_element_stays_when_only_its_own_ownership_goes() -> None:
    item: dict[str, Any] = {"f:list": {'k:{"name":"a"}': {".": {}, "f:name": {}}}}
    live = owned_by(item)
    found = conflicts_of(live, (0, ("f:list", 'k:{"name":"a"}')))
    (command,) = hand_back(found, live, CONFIG_MAPS)
    after = patched(live, command)["metadata"]["managedFields"][0]["fieldsV1"]
    assert after == {"f:list": {'k:{"name":"a"}': {"f:name": {}}}}


def test_moved_entries_are_not_touched() -> None:
    live = owned_by({"f:a": {}}, {"f:b": {}})
    (command,) = hand_back(conflicts_of(live, (1, ("f:b",))), live, CONFIG_MAPS)
    live["metadata"]["managedFields"].reverse()
    with pytest.raises(AssertionError):
        patched(live, command)


STEPS = some.sampled_from(["f:a", "f:b", "f:x/y", "f:~", 'k:{"name":"c"}', 'v:"d"'])
TREES: Any = some.recursive(
    some.just({}),
    lambda below: some.dictionaries(STEPS, below, min_size=1, max_size=3).flatmap(
        lambda tree: some.sampled_from([tree, {".": {}, **tree}])
    ),
    max_leaves=8,
)


@given(some.lists(TREES.filter(bool), min_size=1, max_size=3), some.data())
def test_exactly_the_fields_that_are_meant_go(trees: list[dict[str, Any]], data: Any) -> None:
    live = owned_by(*trees)
    everything = [(entry.index, path) for entry in entries(live) for path in sorted(entry.paths())]
    if not everything:  # a tree of nothing but the top's own mark
        return
    chosen = data.draw(some.lists(some.sampled_from(everything), min_size=1, unique=True))
    (command,) = hand_back(conflicts_of(live, *chosen), live, CONFIG_MAPS)
    left = {
        (int(entry.owner.manager[1:]), path)
        for entry in entries(patched(live, command))
        for path in entry.paths()
    }
    assert left == set(everything) - set(chosen)
