"""The custom resources as values, and what a router's configuration gets of them."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import resource_table as table
from hypothesis import given
from unit.config.spec_kit import spec_of

from kars_router.config.auth import OAuth
from kars_router.config.converter import structure_config, structure_server
from kars_router.config.digests import digest_of
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.mcpserver import McpServerSpec
from kars_router.config.plain import to_file, to_plain
from kars_router.config.problems import InvalidConfigError
from kars_router.config.resources import (
    Agent,
    KarsSandboxResource,
    KarsSandboxSpec,
    McpServerResource,
    Meta,
    Resources,
    ServerRef,
    ToolPolicyResource,
    misnamed,
    structure_resource,
)
from kars_router.config.schema import Server
from kars_router.config.shapes import fields_by_key
from kars_router.config.toolpolicy import ApprovalMode


def read_server(**spec: Any) -> McpServerSpec:
    resource = structure_resource(table.server(**spec))
    assert isinstance(resource, McpServerResource)
    return resource.spec


def read_sandbox(**spec: Any) -> KarsSandboxSpec:
    resource = structure_resource(table.sandbox(**spec))
    assert isinstance(resource, KarsSandboxResource)
    return resource.spec


def refusal(manifest: table.Manifest) -> InvalidConfigError:
    with pytest.raises(InvalidConfigError) as caught:
        structure_resource(manifest)
    return caught.value


class TestMetadata:
    def test_everything_that_is_read(self) -> None:
        manifest = table.manifest(
            "KarsSandbox",
            {},
            "browser",
            namespace="team-a",
            uid="0-1",
            generation=3,
            labels={"a": "b"},
            deletionTimestamp="2026-01-01T00:00:00Z",
            finalizers=["x/y"],
            managedFields=[{}],
        )
        assert structure_resource(manifest).meta == Meta(
            name="browser",
            namespace="team-a",
            uid="0-1",
            generation=3,
            labels=FrozenMap({"a": "b"}),
            deleting=True,
            finalizers=("x/y",),
        )

    def test_a_file_may_say_little(self) -> None:
        assert structure_resource(table.sandbox()).meta == Meta(name="one")

    @pytest.mark.parametrize(
        ("metadata", "path"),
        [
            ({}, "metadata.name"),
            ({"name": "A"}, "metadata.name"),
            ({"name": 1}, "metadata.name"),
            ({"name": "a", "namespace": "A"}, "metadata.namespace"),
            ({"name": "a", "labels": {"a": 1}}, "metadata.labels"),
            ({"name": "a", "labels": ["a"]}, "metadata.labels"),
            ("a", "metadata"),
            (None, "metadata"),
        ],
    )
    def test_what_is_wrong(self, metadata: Any, path: str) -> None:
        error = refusal({**table.sandbox(), "metadata": metadata})
        assert [problem.path for problem in error.found] == [path]

    def test_a_policy_may_have_dots_in_its_name(self) -> None:
        manifest = table.manifest("ToolPolicy", {}, "a.b")
        assert structure_resource(manifest).meta.name == "a.b"


class TestManifest:
    def test_every_problem_is_found_at_once_and_the_source_is_named(self) -> None:
        manifest = table.manifest("McpServer", {"timeouts": {"call": 0}}, "A", namespace="tools")
        error = refusal({**manifest, "apiVersion": "v1"})
        assert error.source == "McpServer tools/A"
        assert [problem.path for problem in error.found] == [
            "apiVersion",
            "metadata.name",
            "spec.url",
            "spec.timeouts.call",
        ]

    @pytest.mark.parametrize(
        ("version", "kind", "said"),
        [
            ("kars.azure.com/v1alpha1", "KarsSandbox", ""),
            ("kars.azure.com/v1beta1", "ToolPolicy", "apiVersion: must be kars.azure.com/v1alpha1"),
            ("kars.azure.com/v1alpha1", "MCPServers", "kind: 'MCPServers' is not known (did you"),
            ("kars.azure.com/v1alpha1", "InferencePolicy", ""),
            ("kars.azure.com/v1alpha1", None, ""),
            ("elsewhere.example/v1", "MCPServer", ""),
            (None, "McpServer", ""),
        ],
    )
    def test_a_slip_in_what_says_the_kind(
        self, version: str | None, kind: str | None, said: str
    ) -> None:
        told = misnamed({"apiVersion": version, "kind": kind})
        assert told.startswith(said)
        assert bool(told) == bool(said)

    @pytest.mark.parametrize("kind", ["Pod", "mcpserver", None, 1])
    def test_another_kind(self, kind: Any) -> None:
        error = refusal({**table.sandbox(), "kind": kind})
        assert [problem.path for problem in error.found] == ["kind"]
        assert ("did you mean 'McpServer'?" in str(error)) == (kind == "mcpserver")

    def test_nothing_at_all(self) -> None:
        assert refusal({}).source == "manifest"

    @pytest.mark.parametrize("spec", ["x", ["x"], 1])
    def test_a_spec_that_is_no_mapping(self, spec: Any) -> None:
        error = refusal(table.manifest("KarsSandbox", spec))
        assert [problem.path for problem in error.found] == ["spec"]

    @pytest.mark.parametrize("spec", [{}, None])
    def test_an_empty_spec(self, spec: Any) -> None:
        assert structure_resource(table.manifest("KarsSandbox", spec)) == KarsSandboxResource(
            Meta(name="one"), KarsSandboxSpec()
        )

    def test_resources_are_values(self) -> None:
        for manifest in table.VALID.values():
            first, second = structure_resource(manifest), structure_resource(manifest)
            assert first == second
            assert hash(first) == hash(second)


class TestServer:
    def test_its_entry_is_what_was_said(self) -> None:
        spec = read_server(
            url="https://mcp.example.com/mcp?key=x",
            allowedTools=["a"],
            headers={"X-A": "secret"},
            timeouts={"call": 90, "idle": "1h"},
            displayName="One",
            allowedSandboxes={"namespaces": ["a"]},
        )
        assert spec.entry() == {
            "url": "https://mcp.example.com/mcp?key=x",
            "allowedTools": ["a"],
            "headers": {"X-A": "secret"},
            "timeouts": {"call": "1m30s"},
        }

    @pytest.mark.parametrize(
        "name", ["a server with everything of ours", "words that are listed twice"]
    )
    def test_a_router_reads_its_entry_as_the_same_server(self, name: str) -> None:
        spec = structure_resource(table.VALID[name]).spec
        assert isinstance(spec, McpServerSpec)
        read = structure_server(spec.entry())
        assert read == spec.server
        # What the operator expects a router to say, and what the router says.
        assert digest_of(read) == digest_of(spec.server)
        assert type(read.oauth) is OAuth

    @given(spec=spec_of("McpServer"))
    def test_whatever_it_says_a_router_reads_it(self, spec: dict[str, Any]) -> None:
        try:
            resource = structure_resource(table.manifest("McpServer", spec))
        except InvalidConfigError:
            return
        assert isinstance(resource, McpServerResource)
        if not resource.spec.unusable:
            read = structure_server(resource.spec.entry())
            assert read == resource.spec.server
            assert digest_of(read) == digest_of(resource.spec.server)

    def test_scopes_are_asked_for_with_the_token(self) -> None:
        client = {"clientId": "a", "clientSecretFromEnv": "B"}
        spec = read_server(url=table.HTTPS, oauth=client, scopes=["x", "y"])
        assert spec.entry()["oauth"] == {**client, "scopes": ["x", "y"]}

    def test_an_issuer_alone_is_nothing_for_a_router(self) -> None:
        oauth = {"issuer": "https://login.example.com", "audience": "api://x"}
        spec = read_server(url=table.HTTPS, oauth=oauth, bearerFromEnv="TOKEN", scopes=["x"])
        assert spec.unusable == ""
        assert spec.entry() == {"url": table.HTTPS, "bearerFromEnv": "TOKEN"}

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("a server in a bundle", "bundleRef"),
            ("a server that kars runs", "managed"),
            ("a server with tokens as kars has it", "oauth.clientIdFromEnv"),
        ],
    )
    def test_what_no_router_can_use(self, name: str, said: str) -> None:
        spec = structure_resource(table.VALID[name]).spec
        assert isinstance(spec, McpServerSpec)
        assert said in spec.unusable

    def test_it_has_every_field_of_an_entry_that_names_no_file_and_no_program(self) -> None:
        entry, spec = fields_by_key(Server), fields_by_key(McpServerSpec)
        assert entry.keys() - spec.keys() == {
            "command",
            "args",
            "env",
            "bearerFromFile",
            "caFile",
        }
        same = {key for key in entry.keys() & spec.keys() if key != "oauth"}
        assert {key: spec[key].type for key in same} == {key: entry[key].type for key in same}
        assert {key: spec[key].default for key in same} == {key: entry[key].default for key in same}

    def test_secrets_are_not_shown(self) -> None:
        spec = read_server(url="https://a.example/?key=hush", headers={"X-A": "hush"})
        assert "hush" not in repr(spec) + str(to_plain(spec))


class TestSandbox:
    def test_references(self) -> None:
        refs = [{"name": "a"}, {"name": "b", "namespace": "tools"}]
        assert read_sandbox(governance={"mcpServerRefs": refs}).server_refs == (
            ServerRef(name="a"),
            ServerRef(name="b", namespace="tools"),
        )
        single = {"mcpServerRef": {"name": "a"}, "mcpServerRefs": []}
        assert read_sandbox(governance=single).server_refs == (ServerRef(name="a"),)
        assert read_sandbox().server_refs == ()

    def test_the_policy_that_it_names(self) -> None:
        assert read_sandbox(governance={"toolPolicyRef": {"name": "x"}}).policy_name == "x"
        assert read_sandbox(governance={"toolPolicyRef": {}}).policy_name == ""

    def test_the_agents_container_is_ours_first_then_what_kars_says(self) -> None:
        byo = {"image": "theirs", "command": ["a"], "env": [{"name": "A", "value": "b"}]}
        amounts = {"limits": {"cpu": 2}}
        spec = read_sandbox(
            agent={"image": "ours", "args": ["c"], "workingDir": "/srv"},
            runtime={"kind": "BYO", "byo": byo},
            resources=amounts,
        )
        found = spec.container
        assert found.image == "ours"
        assert found.command == ("a",)
        assert found.args == ("c",)
        assert [each.name for each in found.env] == ["A"]
        assert found.resources == Resources(limits=FrozenMap({"cpu": "2"}))
        assert found.working_dir == "/srv"

    def test_the_image_of_another_runtime(self) -> None:
        runtime = {"kind": "OpenClaw", "openclaw": {"image": "claw"}}
        assert read_sandbox(runtime=runtime).container.image == "claw"
        assert read_sandbox().container == Agent()

    def test_what_kars_has_beside_is_left_alone(self) -> None:
        spec = structure_resource(table.VALID["a sandbox as kars has it"]).spec
        assert isinstance(spec, KarsSandboxSpec)
        assert spec.server_refs == (ServerRef(name="playwright"),)
        assert spec.policy_name == "kars-default"
        assert spec.suspended is False


class TestPolicy:
    def read(self, **spec: Any) -> ToolPolicyResource:
        resource = structure_resource(table.policy(**spec))
        assert isinstance(resource, ToolPolicyResource)
        return resource

    def test_it_has_the_name_of_its_resource(self) -> None:
        assert self.read().spec.name == "one"

    def test_a_router_reads_its_entry_as_the_same_policy(self) -> None:
        for manifest in table.VALID.values():
            resource = structure_resource(manifest)
            if isinstance(resource, ToolPolicyResource):
                raw = {"policies": [to_file(resource.spec)]}
                (read,) = structure_config(raw).policies
                assert read == resource.spec
                assert digest_of(read) == digest_of(resource.spec)

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("never", ApprovalMode.NEVER),
            ("auto", ApprovalMode.NEVER),
            ("always", ApprovalMode.ALWAYS),
            ("human", ApprovalMode.ALWAYS),
        ],
    )
    def test_modes_of_approval(self, mode: str, expected: ApprovalMode) -> None:
        assert self.read(approval={"mode": mode}).spec.approval.mode is expected

    def test_an_empty_pattern_stands_for_any(self) -> None:
        applies = self.read(appliesTo={"tool": "", "mcpServer": ""}).spec.applies_to
        assert (applies.tool, applies.mcp_server) == ("*", "*")


def test_a_section_for_a_file_is_read_as_the_same() -> None:
    server = Server(url="https://a.example/?key=x", command=(), args=())
    assert to_file(server) == {"url": "https://a.example/?key=x"}
    server = attrs.evolve(server, url=None, command=("a", "b"), env=FrozenMap({"A": "b"}))
    assert to_file(server) == {"command": ["a", "b"], "env": {"A": "b"}}
    assert structure_server(to_file(server)) == server
