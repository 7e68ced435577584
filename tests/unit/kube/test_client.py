"""Requests of the client, as the fake API server sees them and answers them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from kars_router.errors import UserError
from kars_router.kube import (
    AnswerError,
    ApiError,
    ConflictError,
    Connection,
    ForbiddenError,
    GoneError,
    Kube,
    NotFoundError,
    Resource,
    UnauthorizedError,
    UnreachableError,
    open_kube,
)
from kars_router.kube.resources import (
    CILIUM_NETWORK_POLICIES,
    CONFIG_MAPS,
    MCP_SERVERS,
    NAMESPACES,
    PODS,
)
from kars_router.testing.kube import FakeCluster

Manifest = dict[str, Any]


def config_map(name: str = "a", namespace: str = "default", **data: str) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def kube(cluster: FakeCluster) -> AsyncIterator[Kube]:
    async with cluster.open() as kube:
        yield kube


async def test_an_object_is_made_read_changed_and_deleted(kube: Kube) -> None:
    made = await kube.create(config_map(x="1"))
    assert made["metadata"]["uid"]
    assert await kube.get(CONFIG_MAPS, "a") == made

    made["data"]["x"] = "2"
    replaced = await kube.replace(made)
    assert replaced["data"] == {"x": "2"}

    with pytest.raises(ConflictError) as caught:
        await kube.replace(made)
    assert (caught.value.status, caught.value.reason) == (409, "Conflict")

    patched = await kube.patch(CONFIG_MAPS, "a", "default", {"data": {"x": None, "y": "3"}})
    assert patched["data"] == {"y": "3"}

    await kube.delete(CONFIG_MAPS, "a")
    await kube.delete(CONFIG_MAPS, "a")
    with pytest.raises(NotFoundError):
        await kube.get(CONFIG_MAPS, "a")


async def test_a_name_that_is_taken_is_a_conflict(kube: Kube) -> None:
    await kube.create(config_map())
    with pytest.raises(ConflictError) as caught:
        await kube.create(config_map())
    assert caught.value.reason == "AlreadyExists"


async def test_only_the_object_that_is_meant_is_deleted(kube: Kube, cluster: FakeCluster) -> None:
    made = await kube.create(config_map())
    with pytest.raises(ConflictError):
        await kube.delete(CONFIG_MAPS, "a", uid="another")
    assert cluster.find(CONFIG_MAPS, "a") is not None
    await kube.delete(CONFIG_MAPS, "a", uid=made["metadata"]["uid"], propagation="Orphan")
    assert cluster.find(CONFIG_MAPS, "a") is None
    assert cluster.seen[-1].body == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Orphan",
        "preconditions": {"uid": made["metadata"]["uid"]},
    }


async def test_applying_merges_and_names_conflicts(kube: Kube, cluster: FakeCluster) -> None:
    await kube.apply(config_map(x="1", y="1"), manager="one")
    assert (await kube.apply(config_map(z="1"), manager="two"))["data"] == dict.fromkeys("xyz", "1")

    with pytest.raises(ConflictError) as caught:
        await kube.apply(config_map(x="2"), manager="two")
    assert [(cause.reason, cause.field) for cause in caught.value.causes] == [
        ("FieldManagerConflict", ".data.x")
    ]
    assert '"one"' in caught.value.causes[0].message

    forced = await kube.apply(config_map(x="2"), manager="two", force=True)
    assert forced["data"] == {"x": "2", "y": "1"}
    seen = cluster.seen[-1]
    assert seen.headers["content-type"] == "application/apply-patch+yaml"
    assert seen.query == {"fieldManager": "two", "force": "true"}


async def test_a_dry_run_keeps_nothing(kube: Kube, cluster: FakeCluster) -> None:
    found = await kube.apply(config_map(x="1"), manager="m", dry_run=True, strict=True)
    assert found["data"] == {"x": "1"}
    assert cluster.find(CONFIG_MAPS, "a") is None
    assert cluster.seen[-1].query["dryRun"] == "All"
    assert cluster.seen[-1].query["fieldValidation"] == "Strict"


async def test_a_status_goes_through_its_subresource(kube: Kube, cluster: FakeCluster) -> None:
    server = {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "McpServer",
        "metadata": {"name": "a", "namespace": "default"},
    }
    await kube.apply({**server, "spec": {"url": "http://x"}, "status": {"x": 1}}, manager="m")
    found = cluster.find(MCP_SERVERS, "a")
    assert found is not None
    assert "status" not in found
    changed = await kube.apply({**server, "status": {"x": 2}}, manager="o", subresource="status")
    assert (changed["spec"], changed["status"]) == ({"url": "http://x"}, {"x": 2})
    assert changed["metadata"]["generation"] == 1
    patched = await kube.patch(
        MCP_SERVERS, "a", None, {"status": {"y": 3}}, subresource="status", manager="o"
    )
    assert patched["status"] == {"x": 2, "y": 3}
    replaced = await kube.replace({**patched, "status": {"z": 1}}, subresource="status")
    assert replaced["status"] == {"z": 1}


async def test_objects_without_a_namespace_go_to_that_of_the_connection(
    cluster: FakeCluster,
) -> None:
    async with cluster.open("kube-system") as kube:
        manifest = config_map()
        del manifest["metadata"]["namespace"]
        made = await kube.create(manifest)
        assert made["metadata"]["namespace"] == "kube-system"
        assert await kube.get(CONFIG_MAPS, "a") == made
        assert (await kube.get(NAMESPACES, "default"))["metadata"]["name"] == "default"


async def test_the_server_sees_who_asks(cluster: FakeCluster) -> None:
    async with open_kube(cluster.connection(), name="kars-test", transport=cluster) as kube:
        made = await kube.create(config_map(x="1"))
    assert cluster.seen[-1].headers["user-agent"].startswith("kars-test/")
    assert made["metadata"]["managedFields"][0]["manager"] == "kars-test"


# --- lists ----------------------------------------------------------------------------------------


async def test_a_list_is_put_together_from_its_pages(kube: Kube, cluster: FakeCluster) -> None:
    for number in range(7):
        cluster.put(config_map(f"c{number}"))
    cluster.seen.clear()
    listing = await kube.list(CONFIG_MAPS, "default", limit=3)
    assert [each["metadata"]["name"] for each in listing.items] == [f"c{n}" for n in range(7)]
    assert {each["kind"] for each in listing.items} == {"ConfigMap"}
    assert {each["apiVersion"] for each in listing.items} == {"v1"}
    assert listing.resource_version == str(cluster.store.version)
    assert [seen.query.get("limit") for seen in cluster.seen] == ["3", "3", "3"]


async def test_selectors_are_passed_on(kube: Kube, cluster: FakeCluster) -> None:
    cluster.put(config_map("a") | {"metadata": {"name": "a", "labels": {"k": "v w"}}})
    cluster.put(config_map("b"))
    listing = await kube.list(CONFIG_MAPS, labels="k", fields="metadata.name=a")
    assert [each["metadata"]["name"] for each in listing.items] == ["a"]
    assert cluster.seen[-1].path == "/api/v1/configmaps"


async def test_a_page_that_is_forgotten_restarts_the_list(kube: Kube, cluster: FakeCluster) -> None:
    for number in range(5):
        cluster.put(config_map(f"c{number}"))
    cluster.trouble(410, verb="list", resource=CONFIG_MAPS)
    listing = await kube.list(CONFIG_MAPS, limit=2)
    assert len(listing.items) == 5


async def test_a_list_that_is_forgotten_each_time_is_had_in_one_piece(
    kube: Kube, cluster: FakeCluster
) -> None:
    for number in range(5):
        cluster.put(config_map(f"c{number}"))
    cluster.trouble(410, verb="list", times=3)
    assert len((await kube.list(CONFIG_MAPS, limit=2)).items) == 5
    assert "limit" not in cluster.seen[-1].query
    cluster.trouble(410, verb="list", times=4)
    with pytest.raises(GoneError):
        await kube.list(CONFIG_MAPS, limit=2)


async def test_pages_that_are_too_large_are_asked_for_in_smaller_pieces(
    kube: Kube, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_router.kube.answers.LARGEST", 40_000)
    for number in range(60):
        cluster.put(config_map(f"c{number}", x="x" * 1000))
    listing = await kube.list(CONFIG_MAPS, limit=500)
    assert len(listing.items) == 60
    cluster.put(config_map("z", x="x" * 50_000))
    with pytest.raises(AnswerError, match="more than"):
        await kube.list(CONFIG_MAPS)


# --- discovery ------------------------------------------------------------------------------------


async def test_what_the_server_serves_is_found_out(kube: Kube, cluster: FakeCluster) -> None:
    assert await kube.has(PODS)
    assert await kube.has(MCP_SERVERS)
    assert not await kube.has(CILIUM_NETWORK_POLICIES)
    cluster.served.add(CILIUM_NETWORK_POLICIES)
    assert await kube.has(CILIUM_NETWORK_POLICIES)


async def test_an_error_of_discovery_is_not_an_absence(kube: Kube, cluster: FakeCluster) -> None:
    cluster.trouble(503)
    with pytest.raises(ApiError):
        await kube.has(MCP_SERVERS)


async def test_a_kind_that_is_not_known_is_looked_up_once(kube: Kube, cluster: FakeCluster) -> None:
    cron = Resource("batch", "v1", "cronjobs", "CronJob")
    cluster.served.add(cron)
    manifest = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "a"}}
    await kube.apply(manifest, manager="m")
    await kube.apply(manifest, manager="m")
    assert [seen.verb for seen in cluster.seen] == ["discover", "apply", "apply"]
    assert await kube.resource_of(manifest) == cron
    with pytest.raises(NotFoundError, match="serves no Job of batch/v1"):
        await kube.create({**manifest, "kind": "Job"})


# --- refusals -------------------------------------------------------------------------------------


async def test_a_refusal_has_the_server_s_words(kube: Kube, cluster: FakeCluster) -> None:
    cluster.trouble(429, retry_after=7)
    with pytest.raises(ApiError) as caught:
        await kube.get(PODS, "a")
    assert (caught.value.status, caught.value.retry_after) == (429, 7.0)
    cluster.trouble(403)
    with pytest.raises(ForbiddenError, match="injected Forbidden"):
        await kube.get(PODS, "a")


async def test_mistakes_in_an_object_are_listed(kube: Kube, cluster: FakeCluster) -> None:
    cluster.checks[CONFIG_MAPS] = lambda manifest: [("data.x", "is wrong")]
    with pytest.raises(ApiError) as caught:
        await kube.create(config_map(x="1"))
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    assert [(cause.field, cause.message) for cause in caught.value.causes] == [
        ("data.x", "is wrong")
    ]


HTML = b"<!DOCTYPE html><html><body>Log in</body></html>"


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (200, (HTML, "text/html"), AnswerError, "no Kubernetes API: it answers with an HTML page"),
        (200, (b"\xff\xfe\x00", "image/png"), AnswerError, "image/png that cannot be read"),
        (200, (b"[" * 100_000, "application/json"), AnswerError, "cannot be read"),
        (200, (b"[]", "application/json"), AnswerError, "JSON that is no object"),
        (200, (b"", ""), AnswerError, "it answers with nothing"),
        (200, (b"hello", ""), AnswerError, "something that cannot be read"),
        (302, (b"", ""), AnswerError, "sends us on to an unknown place"),
        (404, (HTML, "text/html"), AnswerError, "with status 404 and an HTML page"),
        (404, (b"404 page not found\n", "text/plain"), NotFoundError, "404 page not found"),
        (400, (b"{}", "application/json"), AnswerError, "status 400 and JSON"),
        (502, (HTML, "text/html"), ApiError, "with status 502 and an HTML page"),
        (503, (b"", ""), ApiError, "with status 503 and nothing"),
        (401, (b"Unauthorized", "text/plain"), UnauthorizedError, "with status 401 and text/plain"),
        (410, (b"Gone\n", "text/plain"), AnswerError, "status 410"),
    ],
)
async def test_strange_answers_are_told_in_a_sentence(
    kube: Kube,
    cluster: FakeCluster,
    status: int,
    body: tuple[bytes, str],
    kind: type[Exception],
    said: str,
) -> None:
    cluster.trouble(status, body=body)
    with pytest.raises(kind, match=said) as caught:
        await kube.get(PODS, "a")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "http://kubernetes.test" in str(caught.value) or kind is NotFoundError


async def test_a_list_has_to_be_one(kube: Kube, cluster: FakeCluster) -> None:
    for body in (b"{}", b'{"metadata": {}, "items": 3}', b'{"metadata": {}, "items": [3]}'):
        cluster.trouble(200, body=(body, "application/json"))
        with pytest.raises(AnswerError, match="no list"):
            await kube.list(PODS)
    cluster.trouble(200, body=(b'{"metadata": {}, "items": [{"spec": 3}]}', "application/json"))
    with pytest.raises(AnswerError, match="no list"):
        await kube.list(PODS)
    cluster.trouble(200, body=(b'{"metadata": {}, "items": null}', "application/json"))
    assert (await kube.list(PODS)).items == []


async def test_an_object_has_to_be_one(kube: Kube, cluster: FakeCluster) -> None:
    for body in (b"{}", b'{"metadata": 3}'):
        cluster.trouble(200, body=(body, "application/json"))
        with pytest.raises(AnswerError, match="no object of its own"):
            await kube.get(PODS, "a")


async def test_a_server_that_turns_pages_forever_is_left(kube: Kube, cluster: FakeCluster) -> None:
    page = b'{"metadata": {"continue": "x"}, "items": []}'
    cluster.trouble(200, body=(page, "application/json"), times=10**9)
    with pytest.raises(AnswerError, match="the same page"):
        await kube.list(PODS)


async def test_a_server_that_is_away_cannot_be_reached(kube: Kube, cluster: FakeCluster) -> None:
    cluster.stop()
    with pytest.raises(UnreachableError, match=r"kubernetes\.test cannot be reached"):
        await kube.get(PODS, "a")
    cluster.start()
    with pytest.raises(NotFoundError):
        await kube.get(PODS, "a")


async def test_an_answer_has_to_come_in_time(
    cluster: FakeCluster, autojump_clock: MockClock
) -> None:
    async with open_kube(cluster.connection(seconds=5), transport=cluster) as kube:
        cluster.trouble(seconds=60)
        with pytest.raises(UnreachableError, match="did not answer within 5 s"):
            await kube.get(PODS, "a")
        assert trio.current_time() == pytest.approx(5)


async def test_a_lost_answer_is_not_sent_for_again(kube: Kube, cluster: FakeCluster) -> None:
    cluster.trouble(error=httpx.ReadError, executed=True)
    with pytest.raises(UnreachableError):
        await kube.create(config_map())
    assert [seen.verb for seen in cluster.seen] == ["create"]
    assert cluster.find(CONFIG_MAPS, "a") is not None


# --- credentials ----------------------------------------------------------------------------------


class Rotating:
    """Credentials of which the server takes only the newest."""

    certificate = None

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)

    async def headers(self) -> dict[str, str]:
        if not self.tokens:
            raise UserError("there is no token")
        return {"authorization": f"Bearer {self.tokens[0]}"}

    def refused(self) -> bool:
        del self.tokens[0]
        return bool(self.tokens)


async def test_a_refused_token_is_renewed_once() -> None:
    cluster = FakeCluster(token="new")
    connection = Connection(server="http://kubernetes.test", credentials=Rotating("old", "new"))
    async with open_kube(connection, transport=cluster) as kube:
        await kube.create(config_map())
    assert len(cluster.seen) == 2

    connection = Connection(server="http://kubernetes.test", credentials=Rotating("a", "b", "new"))
    async with open_kube(connection, transport=cluster) as kube:
        with pytest.raises(UnauthorizedError):
            await kube.get(CONFIG_MAPS, "a")

    connection = Connection(server="http://kubernetes.test", credentials=Rotating("a"))
    async with open_kube(connection, transport=cluster) as kube:
        with pytest.raises(UnauthorizedError):
            await kube.get(CONFIG_MAPS, "a")
        with pytest.raises(UserError, match="no token"):
            await kube.get(CONFIG_MAPS, "a")


async def test_who_is_acted_as_is_said(cluster: FakeCluster) -> None:
    connection = Connection(
        server="http://kubernetes.test",
        impersonate=(("impersonate-user", "u"), ("impersonate-group", "g")),
    )
    async with open_kube(connection, transport=cluster) as kube:
        await kube.list(PODS)
    assert cluster.seen[-1].headers["impersonate-user"] == "u"
    assert cluster.seen[-1].headers["impersonate-group"] == "g"


async def test_a_server_may_have_a_path(cluster: FakeCluster) -> None:
    connection = Connection(server="http://kubernetes.test/k8s/clusters/c-1")
    async with open_kube(connection, transport=cluster) as kube:
        with pytest.raises(NotFoundError):
            await kube.list(PODS)
    assert cluster.seen[-1].path == "/k8s/clusters/c-1/api/v1/pods"
