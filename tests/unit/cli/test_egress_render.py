"""`kars egress render`: from files to NetworkPolicies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from kars_router.cli.main import main
from kars_router.egress import ANNOTATION, Dns, explain, sandbox_policy, to_world
from kars_router.egress.sandbox import asked_by_operator, labels_of, pod_labels_of

API = "kars.azure.com/v1alpha1"


def server(name: str, namespace: str | None = "agents", **spec: Any) -> dict[str, Any]:
    spec = {"url": f"http://{name}.tools.svc:81", **spec}
    return resource("McpServer", name, namespace, spec)


def sandbox(name: str, *refs: Any, namespace: str | None = "agents", **labels: str) -> Any:
    named = [{"name": each} if isinstance(each, str) else each for each in refs]
    spec = {"governance": {"mcpServerRefs": named}}
    made = resource("KarsSandbox", name, namespace, spec)
    made["metadata"]["labels"] = labels
    return made


def resource(kind: str, name: str, namespace: str | None, spec: Any) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "db", "namespace": "tools"},
    "spec": {"selector": {"app": "db"}, "ports": [{"port": 81, "targetPort": "mcp"}]},
}


def write(path: Path, *documents: Any) -> Path:
    path.write_text("\n---\n".join(json.dumps(each) for each in documents), encoding="utf-8")
    return path


def render(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main(["egress", "render", *map(str, args)])
    out, err = capsys.readouterr()
    return status, out, err


def policies(capsys: pytest.CaptureFixture[str], *args: object) -> list[dict[str, Any]]:
    status, out, err = render(capsys, *args, "-o", "json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["apiVersion"], found["kind"]) == ("v1", "List")
    items: list[dict[str, Any]] = found["items"]
    return items


def test_the_policy_of_a_sandbox(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write(
        tmp_path / "all.yaml",
        server("db"),
        server("far", url="https://mcp.vendor.example/mcp"),
        sandbox("browser", "db", "far"),
        SERVICE,
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}},
    )
    (policy,) = policies(capsys, "-f", file)
    url = "http://db.tools.svc:81"
    whole = explain(url).rule
    assert whole is not None
    pods = {**whole["to"][0], "podSelector": {"matchLabels": {"app": "db"}}}
    ports = [{"protocol": "TCP", "port": "mcp"}]
    wanted = sandbox_policy(
        name="browser",
        namespace="agents",
        labels=labels_of("browser", "agents"),
        pod_labels=pod_labels_of("browser", "agents"),
        rules=(),
        https=True,
        dns=Dns(),
        ingress=[asked_by_operator("kars-system", 9090)],
    )
    assert policy["spec"]["egress"][-1] == {"to": [pods], "ports": ports}
    del policy["spec"]["egress"][-1]
    assert json.loads(policy["metadata"].pop("annotations")[ANNOTATION])[0]["servers"] == ["db"]
    assert policy == wanted


def test_directories_and_the_order_of_sandboxes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "b.json", {"kind": "List", "items": [sandbox("b", "db")]})
    write(tmp_path / "a.yml", sandbox("z", "db"), sandbox("a", "db", namespace=None))
    write(tmp_path / "in" / "servers.yaml", server("db"), server("db", None), None)
    (tmp_path / "README.md").write_text("no: [yaml")
    found = policies(capsys, "-f", tmp_path, "-n", "alpha")
    names = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in found]
    assert names == [("agents", "b"), ("agents", "z"), ("alpha", "a")]
    _, text, _ = render(capsys, "-f", tmp_path, "-n", "alpha")
    assert list(YAML(typ="safe", pure=True).load_all(text)) == found
    assert render(capsys, "-f", tmp_path, "-n", "alpha")[1] == text


def test_what_the_operator_was_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    url = "http://db.tools.svc.k8s.example:81"
    file = write(tmp_path / "a.yaml", server("db", url=url), sandbox("s", "db"))
    (policy,) = policies(
        capsys,
        *("-f", file, "--placement", "own", "--namespace-prefix", "box-"),
        *("--operator-namespace", "ops", "--admin-port", "9100"),
        *("--cluster-domain", "k8s.example", "--dns-namespace", "dns"),
        *("--dns-label", "app=dns", "--dns-network", "169.254.20.10/32"),
    )
    assert policy["metadata"]["namespace"] == "box-s"
    assert policy["spec"]["podSelector"]["matchLabels"] == pod_labels_of("s", "agents")
    assert policy["spec"]["ingress"] == [asked_by_operator("ops", 9100)]
    dns = Dns(namespace="dns", pod_labels={"app": "dns"}, networks=("169.254.20.10/32",))
    names, rule = policy["spec"]["egress"]
    assert names == dns.rule()
    assert rule == explain(url, "agents", "k8s.example").rule


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([sandbox("s", "db")], "McpServer agents/db is not there"),
        (
            [sandbox("s", {"name": "db", "namespace": "other"}), server("db")],
            "McpServer other/db is not there",
        ),
        (
            [sandbox("s", {"name": "db", "namespace": "other"}), server("db", "other")],
            "McpServer other/db does not admit this sandbox",
        ),
        (
            [sandbox("s", "db"), server("db", allowedSandboxes={"matchLabels": {"team": "a"}})],
            "McpServer agents/db does not admit this sandbox",
        ),
        ([sandbox("s", "db"), server("db", url="ftp://h")], "McpServer agents/db cannot be read"),
        ([sandbox("s", "db"), server("db", url="http://0.0.0.0/")], "db: "),
    ],
)
def test_what_opens_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, documents: list[Any], said: str
) -> None:
    file = write(tmp_path / "a.yaml", *documents)
    status, out, err = render(capsys, "-f", file, "-o", "json")
    assert status == 1
    assert err.startswith("kars: KarsSandbox agents/s: ")
    assert said in err
    (policy,) = json.loads(out)["items"]
    assert policy["spec"]["egress"] == [Dns().rule()]


def test_a_server_that_admits_the_sandbox(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    allowed = {"matchLabels": {"team": "a"}, "namespaces": ["agents"]}
    file = write(
        tmp_path / "a.yaml",
        sandbox("s", {"name": "db", "namespace": "other"}, team="a"),
        server("db", "other", allowedSandboxes=allowed),
    )
    (policy,) = policies(capsys, "-f", file)
    assert len(policy["spec"]["egress"]) == 2


def test_the_configuration_of_a_router(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    servers = {"near": {"url": "http://db:81"}, "far": {"url": "https://mcp.vendor.example"}}
    jwt = {"issuer": "https://login.example:8443", "audience": ["kars"]}
    config = {"servers": {**servers, "here": {"command": ["x"]}}, "agentAuth": {"jwt": jwt}}
    file = write(tmp_path / "kars.yaml", config)
    (policy,) = policies(capsys, "-f", file, "-n", "a", "--name", "mine", "--pod-label", "app=x")
    assert policy["metadata"]["name"] == "mine"
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app": "x"}}
    assert policy["spec"]["ingress"] == []
    rules = policy["spec"]["egress"]
    assert rules[:2] == [Dns().rule(), to_world(443)]
    assert rules[2:] == [explain("http://db:81", "a").rule, to_world(8443)]
    # Keys that are at hand are fetched from nowhere.
    jwt["jwksFile"] = "keys.json"
    write(tmp_path / "kars.yaml", config)
    assert len(policies(capsys, "-f", file, "--pod-label", "app=x")[0]["spec"]["egress"]) == 3


def test_plugins_that_the_cluster_serves(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attrs import evolve

    from kars_router.egress import Place, SandboxEgress
    from kars_router.hookspecs import hookimpl
    from kars_router.plugins import Plugins

    class Names:
        @hookimpl
        def kars_egress_objects(self, sandbox: SandboxEgress, place: Place) -> SandboxEgress | None:
            if "names.example" not in place.installed:
                return None
            made = {"kind": "Names", "metadata": {"name": sandbox.name}}
            return evolve(sandbox, https=False, objects=(made,))

    load = Plugins.load

    def loaded(**options: Any) -> Plugins:
        plugins = load(**options)
        plugins.register(Names(), "names")
        return plugins

    monkeypatch.setattr(Plugins, "load", loaded)
    far = server("far", url="https://mcp.vendor.example")
    file = write(tmp_path / "a.yaml", far, sandbox("s", "far"))
    assert policies(capsys, "-f", file)[0]["spec"]["egress"][1] == to_world(443)
    policy, names = policies(capsys, "-f", file, "--installed", "names.example")
    assert names == {"kind": "Names", "metadata": {"name": "s"}}
    assert policy["spec"]["egress"] == [Dns().rule()]
    _, out, _ = render(capsys, "-f", file, "--installed", "names.example", "-o", "table")
    assert "also in Names s" in out


def test_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    far = server("far", url="https://mcp.vendor.example")
    file = write(tmp_path / "a.yaml", server("db"), far, sandbox("s", "db", "far"))
    status, out, _ = render(capsys, "-f", file, "-o", "table")
    assert status == 0
    heading, names, https, rule = out.splitlines()
    assert heading.split() == ["NAMESPACE", "POLICY", "OPENS", "FOR"]
    assert names.endswith(" looking names up")
    assert https.endswith("TCP 443  servers at port 443")
    assert rule.split() == ["agents", "s", "namespace", "tools,", "TCP", "81", "db"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no YAML"),
        ("\udcff", "is no UTF-8"),
        ("- a", "no mapping"),
        ("a: b", "neither a resource nor a router's configuration"),
        ("servers: {}\n---\nservers: {}", "two configurations"),
        ("servers: {a: {url: 'http://db', b: c}}", "servers.a.b"),
        ("servers: {a: {url: 'http://db'}}", "--pod-label"),
        ("kind: ConfigMap", "no KarsSandbox and no configuration"),
        (f"{{apiVersion: {API}, kind: KarsSandbx}}", "did you mean 'KarsSandbox'?"),
        ("{apiVersion: v1, kind: Service}", "a Service has no metadata.name"),
        (f"{{apiVersion: {API}, kind: KarsSandbox, metadata: {{name: S}}}}", "metadata.name"),
        (json.dumps(sandbox("s")) + "\n---\n" + json.dumps(sandbox("s")), "is there twice"),
    ],
)
def test_files_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    status, out, err = render(capsys, "-f", file)
    assert (status, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "said", "status"),
    [
        ((), "--file", 2),
        (("-f", "a", "--pod-label", "x"), "KEY=VALUE", 2),
        (("-f", "a", "-n", "No"), "--namespace", 2),
        (("-f", "a", "--dns-network", "x"), "--dns-network", 2),
        (("-f", "a", "-o", "xml"), "xml", 2),
        (("-f", "no-such-file"), "no-such-file: there is no such file", 1),
    ],
)
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str, status: int
) -> None:
    found, out, err = render(capsys, *args)
    assert (found, out) == (status, "")
    assert said in err


def test_several_configurations_of_routers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a.yaml", "b.yaml"):
        write(tmp_path / name, {"servers": {}})
    status, _, err = render(capsys, "-f", tmp_path, "--pod-label", "app=x")
    assert status == 1
    assert "one at a time" in err
