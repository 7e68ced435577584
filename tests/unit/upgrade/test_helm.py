"""Helm as a program: found, checked, asked; and what it says of releases and charts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helm_kit import FakeHelm, revision

from kars_router.errors import UndeterminedError, UserError
from kars_router.upgrade.chart import Wanted, fetch, installed_chart, render
from kars_router.upgrade.helm import Cluster, Helm, HelmError, find, what_it_said
from kars_router.upgrade.prepare import fetch_chart
from kars_router.upgrade.release import (
    NoReleaseError,
    Release,
    Revision,
    manifest_of,
    namespaces_of,
    read_release,
)
from kars_router.upgrade.repair import target_of


@pytest.fixture
def fake(tmp_path: Path) -> FakeHelm:
    directory = tmp_path / "bin"
    directory.mkdir()
    return FakeHelm(directory)


@pytest.fixture
def helm(fake: FakeHelm) -> Helm:
    return find(Cluster(namespace="there"), fake.environment({}))


# --- the program ----------------------------------------------------------------------------------


def test_no_helm(tmp_path: Path) -> None:
    with pytest.raises(UndeterminedError, match=r"^helm is not on PATH; install Helm 4$"):
        find(Cluster(), {"PATH": str(tmp_path)})


@pytest.mark.parametrize("version", ["v3.19.0", "v2.17", "v5.0.0", "v40.1", "", "rubbish"])
def test_another_helm(fake: FakeHelm, version: str) -> None:
    fake.version = version
    with pytest.raises(UndeterminedError, match=r"kars upgrade needs Helm 4$") as caught:
        find(Cluster(), fake.environment({}))
    assert str(caught.value).startswith(f"{fake.directory}/helm is {version or 'no Helm'}; ")


@pytest.mark.parametrize("version", ["v4", "v4.0.0-rc.1", "v4.3", "4.3.2+g1234"])
def test_a_helm_that_will_do(fake: FakeHelm, version: str) -> None:
    fake.version = version
    assert find(Cluster(), fake.environment({})).program == str(fake.directory / "helm")


def test_a_helm_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "helm").write_text("#!/does/not/exist\n", encoding="utf-8")
    (tmp_path / "helm").chmod(0o755)
    with pytest.raises(UndeterminedError, match=r"is no Helm;"):
        find(Cluster(), {"PATH": str(tmp_path)})


def test_nothing_but_the_flags_says_which_cluster_is_meant(fake: FakeHelm) -> None:
    given = {"HELM_KUBEAPISERVER": "x", "HELM_KUBECONTEXT": "x", "HELM_NAMESPACE": "x"}
    kept = {"HELM_DRIVER": "configmap", "KUBECONFIG": "x"}
    cluster = Cluster(kubeconfig=Path("a b"), context="c", namespace="n")
    helm = find(cluster, fake.environment({**given, **kept}))
    assert not given.keys() & helm.environ.keys()
    assert kept.items() <= helm.environ.items()
    options = ["--kubeconfig", "a b", "--kube-context", "c", "--namespace", "n"]
    assert helm.command("status", "x") == [helm.program, "status", "x", *options]
    assert cluster.for_kubectl() == ("--kubeconfig", "a b", "--context", "c")
    assert Cluster(namespace="n").for_kubectl() == ()


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (b"", "it said nothing"),
        (b"Error: no\n", "no"),
        (b"level=WARN msg=x\nError: one\ntwo\n", "one two"),
        (b"odd\x1b[31m words\n", "odd[31m words"),
        (b"\xff", "\ufffd"),
    ],
)
def test_its_words_in_one_line(stderr: bytes, said: str) -> None:
    assert what_it_said(stderr) == said


async def test_what_it_prints(fake: FakeHelm, helm: Helm) -> None:
    fake.say("get", '{"a": 1}')
    assert await helm.ask_json("get", "x") == {"a": 1}
    assert fake.asked() == ["get x --output json --namespace there"]
    fake.say("get", "oh")
    with pytest.raises(UndeterminedError, match=r"printed something that is no JSON: 'oh'"):
        await helm.ask_json("get", "x")
    fake.say("get", err="Error: it broke", code=1)
    with pytest.raises(HelmError, match=r"^it broke$"):
        await helm.ask_json("get", "x")


# --- releases -------------------------------------------------------------------------------------


def release(fake: FakeHelm, *revisions: Any, method: str | None = "ssa") -> None:
    fake.say("history it", list(revisions))
    fake.say("get metadata it", {"applyMethod": method})


async def test_a_release(fake: FakeHelm, helm: Helm) -> None:
    release(fake, revision(3, "superseded"), revision(4), revision(5, "failed"))
    found = await read_release(helm, "it")
    assert (found.last.number, found.current.number, found.good) == (5, 4, 4)
    assert (found.last.status, found.last.is_pending) == ("failed", False)
    assert (found.current.chart, found.current.version) == ("kars-operator", "0.1.0")
    assert found.migrates is False
    assert str(found) == "there/it"
    assert fake.asked()[-1].startswith("get metadata it --revision 4 ")


@pytest.mark.parametrize(("method", "migrates"), [("csa", True), ("", True), (None, True)])
async def test_how_it_was_applied(
    fake: FakeHelm, helm: Helm, method: str | None, migrates: bool
) -> None:
    release(fake, revision(1), method=method)
    assert (await read_release(helm, "it")).migrates is migrates


@pytest.mark.parametrize("status", ["pending-install", "pending-upgrade", "pending-rollback"])
async def test_a_pending_release(fake: FakeHelm, helm: Helm, status: str) -> None:
    failed = {**revision(2, "superseded"), "description": 'Upgrade "it" failed: conflict'}
    release(fake, revision(1, "superseded"), failed, revision(3, status))
    found = await read_release(helm, "it")
    assert found.last.is_pending
    assert found.returns == 2  # as Helm would
    assert target_of(found) == 1  # not the one that failed, which is superseded as well


async def test_where_a_pending_release_goes_back_to(fake: FakeHelm, helm: Helm) -> None:
    release(fake, revision(1, "pending-install"))
    assert target_of(await read_release(helm, "it")) == 1
    release(fake, revision(1, "failed"), revision(2, "pending-upgrade"))
    with pytest.raises(UserError, match=r"has no revision to go back to"):
        target_of(await read_release(helm, "it"))


@pytest.mark.parametrize(
    ("chart", "name", "version"),
    [
        ("kars-operator-0.1.0", "kars-operator", "0.1.0"),
        ("a-1-b-v1.2.3-rc.1", "a-1-b", "1.2.3-rc.1"),
        ("a-1.0.0-2.0.0", "a", "1.0.0-2.0.0"),
        ("odd", "odd", ""),
    ],
)
async def test_charts_by_name_and_version(
    fake: FakeHelm, helm: Helm, chart: str, name: str, version: str
) -> None:
    release(fake, revision(1, chart=chart))
    found = (await read_release(helm, "it")).current
    assert (found.chart, found.version) == (name, version)


async def test_no_release(fake: FakeHelm, helm: Helm) -> None:
    fake.say("history it", err="Error: release: not found\n", code=1)
    with pytest.raises(NoReleaseError, match=r"^there is no release it in the namespace there;"):
        await read_release(helm, "it")
    release(fake, revision(1, "uninstalled"))
    with pytest.raises(NoReleaseError):
        await read_release(helm, "it")
    release(fake, revision(1, "uninstalling"))
    with pytest.raises(UserError, match=r"is being uninstalled"):
        await read_release(helm, "it")


@pytest.mark.parametrize("answer", ["[]", "{}", "[1]", '[{"revision": "x"}]', "null", '[{"a": 1}]'])
async def test_a_history_that_makes_no_sense(fake: FakeHelm, helm: Helm, answer: str) -> None:
    fake.say("history it", answer)
    with pytest.raises(UndeterminedError, match=r"helm says something strange of it: "):
        await read_release(helm, "it")


async def test_a_helm_that_cannot_tell(fake: FakeHelm, helm: Helm) -> None:
    fake.say("history it", err="Error: secrets is forbidden", code=1)
    with pytest.raises(UndeterminedError, match=r"^the release there/it is not known: secrets is"):
        await read_release(helm, "it")
    fake.say("get manifest it", err="Error: oh", code=1)
    with pytest.raises(UndeterminedError, match=r"^the manifest of revision 3 of it is not known"):
        await manifest_of(helm, "it", 3)
    fake.say("get manifest it", "a: [")
    with pytest.raises(UndeterminedError, match=r"is no YAML"):
        await manifest_of(helm, "it", 3)


async def test_where_releases_are(fake: FakeHelm, helm: Helm) -> None:
    fake.say("list", [{"namespace": "b"}, {"namespace": "a"}])
    assert await namespaces_of(helm, "i.t") == ["a", "b"]
    assert fake.asked() == [
        r"list --all-namespaces --filter ^i\.t$ --output json --namespace there"
    ]
    fake.say("list", err="Error: forbidden", code=1)
    assert await namespaces_of(helm, "it") == ()


# --- charts ---------------------------------------------------------------------------------------


def described(fake: FakeHelm, **more: Any) -> None:
    fake.say("show chart", json.dumps({"name": "kars-operator", "version": "0.2.0", **more}))
    fake.say("show crds", "")


async def test_a_chart_that_is_there(fake: FakeHelm, helm: Helm, tmp_path: Path) -> None:
    described(fake, appVersion="0.2.1")
    found = await fetch(helm, Wanted(chart=str(tmp_path), version="0.2.0"), tmp_path)
    assert (found.path, found.version, found.app_version) == (str(tmp_path), "0.2.0", "0.2.1")
    assert found.definitions == ()
    assert not any(each.startswith("pull") for each in fake.asked())
    with pytest.raises(UserError, match=r"is version 0.2.0, not 0.3.0; name a chart that has it"):
        await fetch(helm, Wanted(chart=str(tmp_path), version="0.3.0"), tmp_path)


async def test_a_chart_from_elsewhere(fake: FakeHelm, helm: Helm, tmp_path: Path) -> None:
    described(fake)
    fake.say("pull")
    wanted = Wanted(chart="repository/chart", version="0.2.0")
    with pytest.raises(UndeterminedError, match=r"has left no chart"):
        await fetch(helm, wanted, tmp_path)
    (tmp_path / "kars-operator-0.2.0.tgz").touch()
    assert (await fetch(helm, wanted, tmp_path)).path.endswith("kars-operator-0.2.0.tgz")
    pull = f"pull repository/chart --version 0.2.0 --destination {tmp_path}"
    assert fake.asked()[0].startswith(pull)


@pytest.mark.parametrize(
    ("chart", "why"),
    [
        ("", "is no chart that can be used"),
        ("a: [", "is no chart that can be used"),
        ("text", "its Chart.yaml is empty"),
        ("{name: a}", "no version that can be used: ''"),
        ("{name: a, version: '--x'}", "no version that can be used: '--x'"),
        ("{name: a, version: 1.10}", "no version that can be used: '1.1'"),
    ],
)
async def test_what_is_no_chart(
    fake: FakeHelm, helm: Helm, tmp_path: Path, chart: str, why: str
) -> None:
    fake.say("show chart", chart)
    fake.say("show crds", "")
    with pytest.raises(UserError, match=why):
        await fetch(helm, Wanted(chart=str(tmp_path)), tmp_path)


def at(version: str, chart: str = "kars-operator") -> Release:
    found = Revision(number=1, status="deployed", chart=chart, version=version)
    return Release(name="it", namespace="there", last=found, current=found)


async def test_which_chart_a_release_may_become(fake: FakeHelm, helm: Helm, tmp_path: Path) -> None:
    described(fake)
    plain = Wanted(chart=str(tmp_path))
    named = Wanted(chart=str(tmp_path), version="0.2.0")
    for version in ("0.1.0", "0.2.0", "0.2.0-rc.1"):
        await fetch_chart(helm, at(version), plain, tmp_path)
    for version in ("0.10.0", "0.2.1", "odd"):
        with pytest.raises(UserError, match=r"to go back, name the version with --to 0.2.0$"):
            await fetch_chart(helm, at(version), plain, tmp_path)
        await fetch_chart(helm, at(version), named, tmp_path)
    with pytest.raises(UserError, match=r"there/it is a release of the chart other, and "):
        await fetch_chart(helm, at("0.1.0", "other"), named, tmp_path)


async def test_what_a_chart_renders_to(fake: FakeHelm, helm: Helm, tmp_path: Path) -> None:
    one = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: NAME}\n"
    described(fake)
    wanted = Wanted(chart=str(tmp_path), values=("a b.yaml",), assignments=("x=1",))
    chart = await fetch(helm, wanted, tmp_path)
    hooks = [
        {"manifest": one.replace("NAME", name), "events": events}
        for name, events in {"a": ["pre-upgrade"], "b": ["pre-install"], "c": None}.items()
    ]
    fake.say("upgrade it", {"manifest": f"---\n{one}", "hooks": hooks})
    found = await render(helm, at("0.1.0"), chart, wanted)
    assert [each["metadata"]["name"] for each in found.objects] == ["NAME"]
    assert [each["metadata"]["name"] for each in found.hooks] == ["a"]
    asked = fake.asked()[-1]
    assert asked.startswith(f"upgrade it {tmp_path} --reset-then-reuse-values --values a b.yaml ")
    assert "--set x=1 --dry-run=server --server-side=true" in asked

    fake.say("upgrade it", err="Error: UPGRADE FAILED: values do not fit", code=1)
    with pytest.raises(UserError, match=r"cannot be applied to there/it: values do not fit$"):
        await render(helm, at("0.1.0"), chart, wanted)
    for answer in ("{}", "[]", '{"manifest": "a"}'):
        fake.say("upgrade it", answer)
        with pytest.raises(UndeterminedError, match=r"renders to cannot be read"):
            await render(helm, at("0.1.0"), chart, wanted)


def installed(directory: Path, *files: str, direct: str | None = None) -> None:
    """An installed distribution of the operator."""
    info = directory / "kars_operator-9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: kars-operator\nVersion: 9\n", encoding="utf-8")
    (info / "RECORD").write_text("".join(f"{each},,\n" for each in files), encoding="utf-8")
    if direct is not None:
        (info / "direct_url.json").write_text(direct, encoding="utf-8")


def test_the_chart_of_the_installed_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "packages"
    monkeypatch.setattr(sys, "path", [str(place)])
    assert installed_chart() is None
    installed(place, "kars_operator/main.py", "kars_operator/chart/Chart.yaml", direct="{}")
    assert installed_chart() is None  # it is gone
    chart = place / "kars_operator" / "chart"
    chart.mkdir(parents=True)
    (chart / "Chart.yaml").touch()
    assert installed_chart() == str(chart)


@pytest.mark.parametrize("direct", [None, "[", "[]", '{"url": "https://example.com/x"}'])
def test_a_distribution_without_a_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: str | None
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    installed(tmp_path, direct=direct)
    assert installed_chart() is None


def test_the_chart_of_a_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a tree"
    (source / "chart").mkdir(parents=True)
    (source / "chart" / "Chart.yaml").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    installed(tmp_path / "packages", direct=json.dumps({"url": source.as_uri()}))
    assert installed_chart() == str(source / "chart")
