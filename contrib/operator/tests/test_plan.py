"""The objects of a sandbox: which there are, what bounds them, that a router would take them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import evolve
from kars_operator import names, plan
from kars_operator.plan import Means, Plan
from kars_operator.refs import Chosen, choose
from kars_operator.settings import Placement, Settings
from operator_kit import policy, sandbox, server

from kars_router.config.digests import digest_of_all, enforced_by
from kars_router.config.load import parse
from kars_router.config.resources import KarsSandboxResource, McpServerResource
from kars_router.config.schema import LogLevel
from kars_router.egress import Place, Service
from kars_router.errors import ConfigError
from kars_router.plugins import Plugins

PLUGINS = Plugins.load()
POD = Service(selector={"app": "tools"}, ports={8931: 9000})


def compose(
    asking: KarsSandboxResource,
    *servers: McpServerResource,
    settings: Settings | None = None,
    services: dict[str, Service] | None = None,
    policies: dict[str, Any] | None = None,
) -> Plan:
    settings = settings or Settings()
    known = {each.meta.name: each for each in servers}
    chosen = choose(asking, lambda _, name: known.get(name), lambda _: policies or {})
    place = Place(
        namespace=settings.namespace_of(asking.meta.name, asking.meta.namespace),
        service_lookup=lambda namespace, name: (services or {}).get(f"{namespace}/{name}"),
    )
    return plan.compose(asking, chosen, Means(settings=settings, place=place, plugins=PLUGINS))


def of(made: Plan, kind: str) -> dict[str, Any]:
    (found,) = [each for each in made.objects if each["kind"] == kind]
    return found


def pod(made: Plan) -> dict[str, Any]:
    spec: dict[str, Any] = of(made, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(made: Plan, name: str) -> dict[str, Any]:
    spec = pod(made)
    (found,) = [
        each for each in (*spec["initContainers"], *spec["containers"]) if each["name"] == name
    ]
    return dict(found)


def test_what_bounds_a_pod_is_there_before_the_pod() -> None:
    made = compose(sandbox("box", "tools"), server())
    kinds = [each["kind"] for each in made.objects]
    assert kinds == ["ServiceAccount", "ConfigMap", "NetworkPolicy", "Deployment"]
    assert all(each["metadata"]["namespace"] == "team" for each in made.objects)
    owners = [each["metadata"].get("ownerReferences") for each in made.objects]
    assert owners == [None] * 4  # a file knows no uids


def test_everything_goes_with_the_sandbox_that_owns_it() -> None:
    made = compose(sandbox("box", metadata={"uid": "u"}))
    for each in made.objects:
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("KarsSandbox", "box", "u")
        assert owner["controller"] is True


def test_a_router_takes_the_configuration_and_echoes_the_digest() -> None:
    rules = policy(default="allow", rules=[{"effect": "deny", "tools": ["drop_*"]}])
    made = compose(
        sandbox("box", "tools", governance={"toolPolicyRef": {"name": "rules"}}),
        server(timeouts={"call": "10s"}, headers={"X-Tenant": "a"}, bearerFromEnv="TOKEN"),
        policies={"rules": rules},
    )
    text = of(made, "ConfigMap")["data"]["kars.yaml"]
    config = parse(text)
    assert digest_of_all(enforced_by(config)) == made.digest
    assert [(each.kind, each.name) for each in made.enforced] == [
        ("ToolPolicy", "rules"),
        ("McpServer", "tools"),
    ]
    tools = config.servers["tools"]
    assert tools.timeouts.call == 10
    assert tools.headers["X-Tenant"] == "a"
    assert config.policies[0].rules[0].tools == ("drop_*",)
    assert config.admin is not None
    assert (config.listen.host, config.admin.port) == ("127.0.0.1", 9090)


def test_the_configuration_is_json_that_people_can_read() -> None:
    """A router needs no YAML parser for it."""
    made = compose(sandbox("box", "tools"), server(headers={"X-Tenant": "a"}))
    text = of(made, "ConfigMap")["data"]["kars.yaml"]
    assert list(json.loads(text)) == ["listen", "admin", "servers", "audit", "shutdownGrace", "log"]
    assert text.startswith('{\n  "listen": "127.0.0.1:8443",\n')
    assert '"X-Tenant": "a"' in text
    assert text.endswith("\n}\n")


def test_a_sandbox_without_servers_has_a_router_that_starts() -> None:
    made = compose(sandbox())
    assert not parse(of(made, "ConfigMap")["data"]["kars.yaml"]).servers
    assert [rule["ports"][0]["port"] for rule in made.policy["spec"]["egress"]] == [53]


def test_the_router_is_a_sidecar_that_may_do_nothing_but_route() -> None:
    made = compose(sandbox("box", "tools"), server(bearerFromEnv="TOKEN"))
    router = container(made, "router")
    assert router["restartPolicy"] == "Always"
    assert [each["name"] for each in pod(made)["initContainers"]] == ["guard", "router"]
    security = router["securityContext"]
    assert security["runAsUser"] == names.ROUTER_UID
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert router[probe]["httpGet"]["port"] == "admin"
    (token,) = [each for each in router["env"] if each["name"] == "TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "box-router-credentials", "key": "TOKEN"}


def test_the_agent_has_neither_rights_nor_the_routers_tokens() -> None:
    made = compose(sandbox("box", "tools"), server(bearerFromEnv="TOKEN"))
    agent = container(made, "agent")
    assert agent["securityContext"]["runAsUser"] == names.AGENT_UID
    assert agent["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert agent["securityContext"]["allowPrivilegeEscalation"] is False
    assert "TOKEN" not in str(agent)
    assert "router-credentials" not in str(agent)
    assert {each["name"]: each["value"] for each in agent["env"]} == {
        "KARS_MCP_URL": "http://127.0.0.1:8443/mcp",
        "KARS_MCP_SERVERS": "tools",
    }
    mounted = {each["name"] for each in agent["volumeMounts"]}
    assert mounted.isdisjoint({"config", "state"})
    assert pod(made)["automountServiceAccountToken"] is False
    assert of(made, "ServiceAccount")["automountServiceAccountToken"] is False


def test_no_agent_gets_the_tokens_of_another_sandboxs_router() -> None:
    # The name of its Secret would be that of the Secret of web's router.
    agent = container(compose(sandbox("web-router")), "agent")
    assert names.credentials("web") not in str(agent)
    assert container(compose(sandbox("web")), "agent")["envFrom"]


def test_a_server_cannot_name_a_variable_twice() -> None:
    made = compose(sandbox("box", "tools"), server(bearerFromEnv="KARS_STATE_DIR"))
    listed = [each["name"] for each in container(made, "router")["env"]]
    assert listed == ["KARS_STATE_DIR"]


def test_only_the_guard_may_change_the_network() -> None:
    made = compose(sandbox())
    capable = [
        each["name"]
        for each in (*pod(made)["initContainers"], *pod(made)["containers"])
        if "add" in each["securityContext"]["capabilities"]
    ]
    assert capable == ["guard"]
    guard = container(made, "guard")
    assert guard["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert "restartPolicy" not in guard  # it ends, and then its rights are gone
    assert guard["args"] == Settings().guard().arguments()
    assert guard["args"][-2:] == ["--deny-loopback-port", "9090"]


def test_what_a_sandbox_says_of_its_containers_is_heeded() -> None:
    made = compose(
        sandbox(
            agent={
                "image": "agent:2",
                "command": ["run"],
                "env": [
                    {"name": "KARS_MCP_URL", "value": "mine"},
                    {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
                "workingDir": "/work",
                "resources": {"limits": {"memory": "1Gi"}},
            },
            router={"image": "router:2", "env": [{"name": "B", "value": "1"}], "logLevel": "debug"},
        )
    )
    agent, router = container(made, "agent"), container(made, "router")
    assert (agent["image"], agent["command"], agent["workingDir"]) == ("agent:2", ["run"], "/work")
    assert agent["resources"] == {"limits": {"memory": "1Gi"}}
    # Each name once: a list with a name twice is refused by server-side apply.
    assert [each["name"] for each in agent["env"]] == ["KARS_MCP_URL", "KARS_MCP_SERVERS", "A"]
    assert agent["env"][0]["value"] == "mine"
    assert router["image"] == container(made, "guard")["image"] == "router:2"
    assert {"name": "B", "value": "1"} in router["env"]
    assert parse(of(made, "ConfigMap")["data"]["kars.yaml"]).log.level is LogLevel.DEBUG


def test_the_image_of_a_runtime_is_the_operators() -> None:
    asking = sandbox(agent={}, runtime={"kind": "Hermes"})
    assert compose(asking).image == ""
    assert "Deployment" not in [each["kind"] for each in compose(asking).objects]
    settings = Settings(agent_images={"Hermes": "hermes:1"})
    assert container(compose(asking, settings=settings), "agent")["image"] == "hermes:1"


def test_a_suspended_sandbox_has_everything_but_a_pod() -> None:
    assert of(compose(sandbox(suspended=True)), "Deployment")["spec"]["replicas"] == 0
    assert of(compose(sandbox()), "Deployment")["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("changed", "restarts"),
    [
        ({"servers": [server(allowedTools=["a"])]}, False),
        ({"servers": [server(url="http://other.mcp.svc/mcp")]}, False),
        ({"asking": sandbox("box", "tools", router={"logLevel": "debug"})}, True),
        ({"settings": Settings(admin_port=9999)}, True),
        ({"servers": [server(bearerFromEnv="TOKEN")]}, True),  # a variable needs a new process
    ],
)
def test_a_pod_is_replaced_only_for_what_a_running_router_does_not_take_over(
    changed: dict[str, Any], restarts: bool
) -> None:
    given: dict[str, Any] = {"asking": sandbox("box", "tools"), "servers": [server()], **changed}
    before = compose(sandbox("box", "tools"), server())
    after = compose(given["asking"], *given["servers"], settings=given.get("settings"))
    template = "spec"
    assert (of(before, "Deployment")[template] != of(after, "Deployment")[template]) is restarts


def rules(made: Plan) -> list[Any]:
    return [each for each in made.policy["spec"]["egress"] if each["ports"][0]["port"] != 53]


def test_a_service_that_can_be_read_opens_its_pods_at_their_own_port() -> None:
    made = compose(sandbox("box", "tools"), server(), services={"mcp/tools": POD})
    (rule,) = rules(made)
    assert rule["ports"] == [{"protocol": "TCP", "port": 9000}]
    assert rule["to"][0]["podSelector"] == {"matchLabels": {"app": "tools"}}
    assert [each.word for each in made.derived] == ["ServicePods"]


@pytest.mark.parametrize(
    ("url", "word", "https", "count"),
    [
        ("http://tools.mcp.svc:8931/mcp", "Namespace", False, 1),
        ("https://mcp.example.com/mcp", "Https", True, 1),
        ("https://mcp.example.com:8443/mcp", "Port", False, 1),
        ("http://10.0.0.7:80/mcp", "Address", False, 1),
    ],
)
def test_how_egress_was_derived_is_said(url: str, word: str, https: bool, count: int) -> None:
    made = compose(sandbox("box", "tools"), server(url=url))
    assert [each.word for each in made.derived] == [word]
    assert len(rules(made)) == count
    assert (rules(made)[0]["ports"][0]["port"] == 443) is https


def test_the_only_way_in_is_the_operators() -> None:
    made = compose(sandbox("box", "tools"), server(), settings=Settings(operator_namespace="ops"))
    (rule,) = made.policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 9090}]
    (peer,) = rule["from"]
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "ops"}}
    assert made.policy["spec"]["podSelector"]["matchLabels"] == names.pod_labels_of("box", "team")


def test_what_a_router_would_refuse_is_not_planned() -> None:
    fine = server()
    wrong = evolve(fine, spec=evolve(fine.spec, max_connections=0))
    with pytest.raises(ConfigError):
        compose(sandbox("box", "tools"), wrong)


def test_a_namespace_of_ones_own_holds_everything() -> None:
    settings = Settings(placement=Placement.OWN)
    made = compose(sandbox("box", metadata={"uid": "u"}), settings=settings)
    namespace = made.objects[0]
    assert (namespace["kind"], namespace["metadata"]["name"]) == ("Namespace", "kars-box")
    rest = made.objects[1:]
    assert {each["metadata"]["namespace"] for each in rest} == {"kars-box"}
    # An owner in another namespace would be taken for one that is gone.
    assert all("ownerReferences" not in each["metadata"] for each in made.objects)


def test_the_order_of_references_changes_nothing_but_what_it_says() -> None:
    first = compose(sandbox("box", "a", "b"), server("a"), server("b", url="http://b.mcp.svc/"))
    second = compose(sandbox("box", "b", "a"), server("a"), server("b", url="http://b.mcp.svc/"))
    assert first.policy == second.policy
    assert first.digest == second.digest


def test_nothing_was_chosen_where_nothing_was_asked_for() -> None:
    assert choose(sandbox(), lambda *_: None, lambda _: {}) == Chosen()
