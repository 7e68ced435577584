"""`kars upgrade` with a fake Helm and the fake API server on a socket."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from attrs import define, frozen
from helm_kit import FakeHelm, revision
from unit.cli.kubeconfig_kit import write_kubeconfig

from kars_router.cli import upgrade_view
from kars_router.cli.main import main
from kars_router.cli.upgrade_view import answer
from kars_router.kube.resources import CONFIG_MAPS, SECRETS
from kars_router.testing import serve
from kars_router.testing.kube import FakeCluster
from kars_router.update.findings import Findings
from kars_router.upgrade.changes import Change, Image, Reference
from kars_router.upgrade.chart import Chart
from kars_router.upgrade.conflicts import Conflict
from kars_router.upgrade.ownership import MISSING, Owner
from kars_router.upgrade.plan import Plan
from kars_router.upgrade.preflight import Checked, Survey
from kars_router.upgrade.release import Release, Revision
from kars_router.upgrade.rollout import Trouble
from kars_router.upgrade.running import Outcome

NAME = "kars-operator"
_PINNED = "although the chart's version does: the values of the release name the images"


@frozen
class Done:
    status: int
    out: str
    err: str


@define(eq=False)
class Bench:
    """The command line in this process, a cluster and a Helm for it, and a chart."""

    cluster: FakeCluster
    helm: FakeHelm
    kubeconfig: Path
    chart: Path
    capsys: pytest.CaptureFixture[str]

    async def kars(self, *words: str) -> Done:
        config = ["--kubeconfig", str(self.kubeconfig)]
        which = ["--chart", str(self.chart)] if "--chart" not in words else []
        arguments = ["upgrade", *which, *config, *words]
        status = await trio.to_thread.run_sync(functools.partial(main, arguments))
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Done(status, out, err)

    async def process(self, *words: str) -> Done:
        """The command in a process of its own, for what minds interrupts."""
        config = ["--chart", str(self.chart), "--kubeconfig", str(self.kubeconfig)]
        command = [sys.executable, "-m", "kars_router", "upgrade", *config, *words]
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
        assert b"Traceback" not in done.stderr
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def release(self, *revisions: Any) -> None:
        self.helm.say(f"history {NAME}", list(revisions))
        self.helm.say(f"get metadata {NAME}", {"applyMethod": "ssa"})

    def render(self, *manifests: dict[str, Any], before: tuple[dict[str, Any], ...] = ()) -> None:
        text = "\n---\n".join(map(json.dumps, manifests))
        self.helm.say(f"upgrade {NAME}", {"manifest": text, "hooks": []})
        old = "\n---\n".join(map(json.dumps, before or manifests))
        self.helm.say(f"get manifest {NAME}", old)


@pytest.fixture
async def bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    directory = tmp_path / "bin"
    directory.mkdir()
    helm = FakeHelm(directory)
    monkeypatch.setenv("PATH", helm.environment({})["PATH"])
    chart = tmp_path / "chart"
    chart.mkdir()
    described = {"name": NAME, "version": "0.2.0", "appVersion": "odd"}
    helm.say("show chart", json.dumps(described))
    helm.say("show crds", "")
    cluster = FakeCluster()
    async with serve(cluster) as url:
        config = write_kubeconfig(tmp_path / "kubeconfig", url.rstrip("/"))
        found = Bench(cluster, helm, config, chart, capsys)
        found.release(revision(1))
        found.render(config_map(key="a"))
        yield found


def config_map(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": data}


@pytest.mark.parametrize(
    "words",
    [
        ["--to", "newest"],
        ["--to", ">=0.1.0"],
        ["--timeout", "soon"],
        ["--timeout", "0s"],
        ["--release", "-x"],
        ["--release", "A"],
        ["-n", "Not A Name"],
        ["-f", "/does/not/exist.yaml"],
        ["-o", "json"],
        ["-o", "yaml"],
        ["extra"],
    ],
)
async def test_wrong_usage(bench: Bench, words: list[str]) -> None:
    done = await bench.kars(*words)
    assert (done.status, done.out) == (2, "")
    assert bench.helm.asked() == []


async def test_without_a_chart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kars_router.upgrade.chart.installed_chart", lambda: None)
    done = await bench.kars("--chart", "")
    assert done.status == 1
    assert done.err.startswith("kars: there is no chart to upgrade to: name one with --chart, or ")


async def test_without_helm_4(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench.helm.version = "v3.19.0"
    bench.release(revision(1))
    done = await bench.kars()
    program = bench.helm.directory / "helm"
    assert (done.status, done.out) == (3, "")
    assert done.err == f"kars: {program} is v3.19.0; kars upgrade needs Helm 4\n"
    monkeypatch.setenv("PATH", str(tmp_path))
    done = await bench.kars()
    assert (done.status, done.err) == (3, "kars: helm is not on PATH; install Helm 4\n")


async def test_without_a_cluster(bench: Bench) -> None:
    bench.cluster.trouble(503, times=9)
    done = await bench.kars()
    assert (done.status, len(done.err.splitlines())) == (3, 1)
    bench.cluster.calm()
    bench.cluster.stop()
    done = await bench.kars()
    assert (done.status, len(done.err.splitlines())) == (3, 1)
    assert bench.helm.asked() == []  # our own client says it more clearly
    done = await bench.kars("--kubeconfig", "/does/not/exist")
    assert (done.status, len(done.err.splitlines())) == (3, 1)


async def test_without_a_release(bench: Bench) -> None:
    bench.helm.say(f"history {NAME}", err="Error: release: not found", code=1)
    bench.helm.say("list", [])
    done = await bench.kars()
    assert done.status == 1
    assert done.err.startswith(f"kars: there is no release {NAME} in the namespace default; ")
    bench.helm.say("list", [{"namespace": "a"}, {"namespace": "b"}])
    done = await bench.kars()
    assert done.status == 1
    assert done.err == f"kars: there are releases {NAME} in a, b; choose one with --namespace\n"
    done = await bench.kars("-n", "there")
    assert (done.status, "in the namespace there;" in done.err) == (1, True)


async def test_a_release_elsewhere(bench: Bench) -> None:
    bench.helm.say(
        f"history {NAME} --max 256 --output json", err="Error: release: not found", code=1
    )
    elsewhere = f"--kubeconfig {bench.kubeconfig} --namespace there"
    words = f"history {NAME} --max 256 --output json {elsewhere}"
    bench.helm.say(words, [revision(1, chart=f"{NAME}-0.2.0")])
    bench.helm.say("list", [{"namespace": "there"}])
    bench.render()
    done = await bench.kars("--dry-run")
    assert (done.status, done.err) == (0, "")
    assert done.out == f"there/{NAME} is at 0.2.0, and there is nothing to do\n"


async def test_definitions(bench: Bench) -> None:
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {},
    }
    bench.helm.say("show crds", json.dumps(crd))
    done = await bench.kars("--dry-run")
    assert "create  CustomResourceDefinition things.example.com" in done.out
    done = await bench.kars("--dry-run", "--skip-crds")
    assert "CustomResourceDefinition" not in done.out
    bench.release(revision(1, chart=f"{NAME}-0.3.0"))
    done = await bench.kars("--dry-run", "--to", "0.2.0")
    assert "CustomResourceDefinition" not in done.out
    assert "the custom resource definitions stay as they are on the way back" in done.out


async def test_nobody_is_asked_without_a_terminal(bench: Bench) -> None:
    done = await bench.kars()
    assert done.status == 2
    assert "create" in done.out
    assert "there is no terminal to ask on; add --yes" in done.err
    assert not any("--rollback-on-failure" in each for each in bench.helm.asked())


async def test_a_dry_run(bench: Bench) -> None:
    done = await bench.kars("--dry-run")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"default/{NAME}: {NAME} 0.1.0 -> 0.2.0",
        "",
        "What is new is not known: the charts do not say which releases they install",
        "",
        "CHANGE  OBJECT                  PODS  WHAT",
        "create  ConfigMap default/conf",
        "",
        f"no image changes, {_PINNED}",
    ]
    assert bench.cluster.find(CONFIG_MAPS, "conf") is None


async def test_an_upgrade_that_helm_does(bench: Bench) -> None:
    done = await bench.process("--yes", "-o", "json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["upgraded"], found["outcome"]["succeeded"]) == (True, True)
    (command,) = (each for each in bench.helm.asked() if "--rollback-on-failure" in each)
    assert command.startswith(f"upgrade {NAME} {bench.chart} --reset-then-reuse-values ")
    assert f"--kubeconfig {bench.kubeconfig} --namespace default" in command


async def test_an_upgrade_that_fails(bench: Bench) -> None:
    rendered = bench.helm.answers[f"upgrade {NAME}"]
    words = f"upgrade {NAME} {bench.chart} --reset-then-reuse-values"
    bench.helm.say(words, err="Error: UPGRADE FAILED: no\n", code=1)
    bench.helm.say(f"{words} --dry-run=server", rendered.out)
    done = await bench.process("--yes")
    assert done.status == 1
    assert done.err == (
        f"kars: the upgrade of default/{NAME} failed, and nothing of it was changed:"
        " UPGRADE FAILED: no\n"
    )


async def test_a_conflict(bench: Bench) -> None:
    live = bench.cluster.put(config_map(key="theirs"))
    done = await bench.kars("--yes")
    assert done.status == 1
    assert done.err == "kars: nothing was changed: 1 field belongs to others\n"
    assert "ConfigMap default/conf  .data.key  somebody  theirs  a" in done.out
    assert "  kubectl patch configmaps conf -n default --type=json -p " in done.out
    assert f"--kubeconfig {bench.kubeconfig}" in done.out
    assert bench.cluster.find(CONFIG_MAPS, "conf") == live
    assert not any("--rollback-on-failure" in each for each in bench.helm.asked())
    done = await bench.process("--yes", "--force-conflicts")
    assert done.status == 0
    assert "These fields are taken from others:" in done.out


async def test_a_pending_release(bench: Bench) -> None:
    bench.release(revision(1), revision(2, "pending-upgrade"))
    for words in (["--yes"], ["--dry-run"], ["--dry-run", "-o", "json", "--repair"]):
        done = await bench.kars(*words)
        assert done.status == 1
        if "json" in words:
            assert json.loads(done.out)["status"] == "pending-upgrade"
        else:
            assert done.out == ""
        assert "is pending-upgrade at revision 2 since 2030-01-02T03:04:05" in done.err
        assert f"add --repair (it runs helm rollback {NAME} 1 --server-side=true " in done.err
    assert not any(each.startswith("rollback") for each in bench.helm.asked())
    bench.helm.say("rollback", err="Error: no\n", code=1)
    done = await bench.process("--yes", "--repair")
    assert (done.status, done.err) == (1, f"kars: default/{NAME} could not be repaired: no\n")


async def test_a_repair_that_takes_something(bench: Bench) -> None:
    bench.release(revision(1), revision(2, "pending-upgrade"))
    bench.cluster.put(config_map(key="theirs"))
    done = await bench.kars("--yes", "--repair")
    assert (done.status, done.err) == (1, "kars: nothing was changed: 1 field belongs to others\n")
    assert f"default/{NAME} is pending-upgrade" in done.out
    assert not any(each.startswith("rollback") for each in bench.helm.asked())


# --- what is shown --------------------------------------------------------------------------------

DEPLOYMENT = Reference("Deployment", "app", "there", "apps")


def shown(plan: Plan, cluster: tuple[str, ...]) -> str:
    return click.unstyle(upgrade_view.shown(plan, cluster))


def release(version: str = "0.1.0") -> Release:
    last = Revision(number=3, status="deployed", chart=NAME, version=version, app_version="0.1.0")
    return Release(name=NAME, namespace="there", last=last, current=last)


def plan(**more: Any) -> Plan:
    chart = Chart(path="/chart", name=NAME, version="0.2.0", app_version="0.2.0")
    return Plan(**{"release": release(), "chart": chart, **more})


def checked(*conflicts: Conflict, **more: Any) -> Checked:
    change = Change(reference=DEPLOYMENT, action="change", fields=(".a",))
    return Checked(**{"change": change, "wanted": {}, "conflicts": conflicts, **more})


def conflict(field: str = ".spec.replicas", **more: Any) -> Conflict:
    owner = Owner("kubectl", "Update", "apps/v1", "scale")
    return Conflict(**{"field": field, "owner": owner, "theirs": 3, "ours": 1, **more})


def test_what_is_new() -> None:
    notes = Findings(
        newer=("0.1.5", "0.2.0"), summaries={"0.2.0": "Faster."}, page="https://x.test/\x1b"
    )
    text = shown(plan(notes=notes), ())
    assert "What is new:\n  0.2.0  Faster.\n  0.1.5\nRelease notes: https://x.test/\\x1b" in text
    data = answer(plan(notes=notes), ())
    assert data["news"] == [
        {"version": "0.2.0", "summary": "Faster."},
        {"version": "0.1.5", "summary": ""},
    ]
    assert "What is new is not known: oh" in shown(plan(notes=Findings(problem="oh")), ())


def test_changes_in_their_order() -> None:
    image = Image(container="main", before="a:1", after="a:2")
    image_field = '.spec.template.spec.containers[name="main"].image'
    changes = (
        Change(reference=Reference("ConfigMap", "kept", "there"), action="none"),
        Change(reference=Reference("Job", "hook", "there"), action="run"),
        Change(reference=Reference("ConfigMap", "old", "there"), action="delete"),
        Change(
            reference=DEPLOYMENT,
            action="change",
            fields=(image_field, ".a", ".b", ".c"),
            images=(image,),
            pods=2,
        ),
        Change(reference=Reference("Namespace", "n"), action="create", note="so it is"),
    )
    text = shown(plan(hooks=changes), ())
    lines = text[text.index("CHANGE") :].splitlines()
    assert [" ".join(each.split()) for each in lines] == [
        "CHANGE OBJECT PODS WHAT",
        "create Namespace n so it is",
        "change Deployment there/app 2 restart main: a:1 -> a:2, .a, .b, 1 more",
        "delete ConfigMap there/old",
        "run Job there/hook",
        "1 object stays as it is",
    ]
    data = answer(plan(hooks=changes), ())
    assert data["changes"][2]["images"] == [{"container": "main", "before": "a:1", "after": "a:2"}]
    assert data["changes"][2]["podsRestarted"] == 2


def test_values_are_shown_in_one_short_line() -> None:
    values = (None, True, "x\ny", ["a"], {"b": 1}, "z" * 100, MISSING, "\x1b[31m")
    conflicts = [conflict(theirs=each) for each in values]
    text = shown(plan(survey=Survey((checked(*conflicts),))), ())
    for each in ("null", "true", "x\\ny", '["a"]', '{"b":1}', f"{'z' * 57}...", "-", "\\x1b[31m"):
        assert f"kubectl (scale)  {each} " in text
    data = answer(plan(survey=Survey((checked(*conflicts),))), ())
    assert [each["now"] for each in data["conflicts"][:3]] == [None, True, "x\ny"]
    assert data["conflicts"][0]["subresource"] == "scale"


def test_values_of_secrets_are_never_shown() -> None:
    change = Change(reference=Reference("Secret", "s", "there"), action="change")
    found = checked(conflict(".data.key", theirs="bXk="), change=change, resource=SECRETS)
    for text in (
        shown(plan(survey=Survey((found,))), ()),
        json.dumps(answer(plan(survey=Survey((found,))), ())),
    ):
        assert "bXk=" not in text
        assert "(hidden)" in text


def test_what_is_in_the_way_and_what_is_taken() -> None:
    survey = Survey((checked(conflict(), conflict(".x", forceable=False)),))
    text = shown(plan(survey=survey), ())
    assert "These fields belong to others:" in text
    assert "--force-conflicts would not do for all of them." in text
    text = shown(plan(survey=survey, force=True), ())
    assert text.index("These fields are taken from others:") < text.index("belong to others:")
    assert "--force-conflicts" not in text
    data = answer(plan(survey=survey, force=True), ())
    assert [each["blocks"] for each in data["conflicts"]] == [False, True]
    applied = conflict(owner=Owner("gitops", "Apply", "apps/v1"))
    text = shown(plan(survey=Survey((checked(applied),))), ())
    assert "Who applies them will take them again, until they are taken out there." in text


def test_what_the_server_refuses() -> None:
    survey = Survey((checked(problem="is immutable\x1b"),), problems=((DEPLOYMENT, "forbidden"),))
    text = shown(plan(survey=survey), ())
    assert "The API server refuses:" in text
    assert "  Deployment there/app: is immutable\\x1b\n  Deployment there/app: forbidden" in text
    assert answer(plan(survey=survey), ())["blocked"]


def test_what_came_of_it_as_data() -> None:
    trouble = Trouble(where=Reference("Pod", "p", "there"), reason="no image")
    outcome = Outcome(succeeded=False, said="no", troubles=(trouble,), release=release())
    data = answer(plan(), (), outcome)
    assert data["upgraded"] is False
    assert data["outcome"]["troubles"][0]["reason"] == "no image"
    assert data["outcome"]["now"]["revision"] == 3
    assert answer(plan(), (), Outcome(succeeded=True))["outcome"]["now"] is None


def test_nothing_to_do() -> None:
    same = plan(release=release("0.2.0"))
    assert shown(same, ()) == f"there/{NAME} is at 0.2.0, and there is nothing to do"
    assert not same.changes_anything
    failed = Revision(number=4, status="failed", chart=NAME, version="0.2.0")
    was = release("0.2.0").current
    left = Release(name=NAME, namespace="there", last=failed, current=was)
    assert plan(release=left).changes_anything
