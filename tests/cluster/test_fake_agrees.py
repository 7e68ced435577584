"""The fake API server of the test kit does what the real one does.

Each scene is played to both, and what comes of it is compared, without what is the server's own
choice: versions, times, ids.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import pytest

from kars_router.kube import ApiError, Kube
from kars_router.kube.resources import CONFIG_MAPS, DEPLOYMENTS, LEASES, PODS, SERVICE_ACCOUNTS
from kars_router.testing.kube import FakeCluster

Manifest = dict[str, Any]

_OWN_CHOICE: Final = frozenset(
    {"uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "selfLink"}
)


class Scene:
    """Plays to one server and writes down what it says."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.record: list[object] = []

    def object(self, kind: str, name: str = "a", **more: Any) -> Manifest:
        metadata = {"name": name, "namespace": self.namespace, **more.pop("metadata", {})}
        versions = {"Deployment": "apps/v1", "Lease": "coordination.k8s.io/v1"}
        return {
            "apiVersion": versions.get(kind, "v1"),
            "kind": kind,
            "metadata": metadata,
            **more,
        }

    def config_map(self, **more: Any) -> Manifest:
        return self.object("ConfigMap", **more)

    async def does(self, asked: Awaitable[Manifest | None]) -> Manifest:
        try:
            found = await asked
        except ApiError as error:
            causes = sorted((cause.reason, cause.field) for cause in error.causes)
            self.record.append((type(error).__name__, error.status, error.reason, causes))
            return {}
        self.record.append(plain(found))
        return found or {}


def plain(value: Any) -> Any:
    """What both servers must agree on; a typed object has no empty fields, so they do not count."""
    if isinstance(value, Mapping):
        found = {}
        for name, inner in value.items():
            if name == "managedFields":
                found[name] = sorted(entry for each in inner for entry in owned(each))
            elif name not in _OWN_CHOICE and name not in {"namespace", "generation"}:
                found[name] = plain(inner)
        return {name: inner for name, inner in sorted(found.items()) if inner not in ({}, [])}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def owned(entry: Manifest) -> Iterator[tuple[str, ...]]:
    """Who owns what. The fake knows no owners of containers, only of what is in them."""

    def walk(fields: Manifest, path: str) -> Iterator[str]:
        for name, inner in fields.items():
            if name == ".":
                continue
            if not inner:
                yield f"{path}{name}"
            yield from walk(inner, f"{path}{name}/")

    for path in walk(entry["fieldsV1"], ""):
        if (entry["operation"], path) == ("Update", "f:data"):
            continue
        yield entry["manager"], entry["operation"], entry.get("subresource", ""), path


async def creating(scene: Scene) -> None:
    kube, made = scene.kube, scene.config_map(data={"x": "1"})
    await scene.does(kube.create(made))
    await scene.does(kube.create(made))
    await scene.does(kube.get(CONFIG_MAPS, "a", scene.namespace))
    await scene.does(kube.get(CONFIG_MAPS, "b", scene.namespace))
    await scene.does(kube.create({**made, "metadata": {"name": "a", "namespace": "no-such"}}))


async def replacing(scene: Scene) -> None:
    kube = scene.kube
    made = await scene.does(kube.create(scene.config_map(data={"x": "1", "y": "1"})))
    changed = {**made, "data": {"x": "2", "z": "1"}}
    await scene.does(kube.replace(changed, manager="other"))
    await scene.does(kube.replace(changed, manager="other"))
    await scene.does(kube.replace(scene.config_map(name="b"), manager="other"))


async def patching(scene: Scene) -> None:
    kube = scene.kube
    await scene.does(kube.create(scene.config_map(data={"x": "1", "y": "1"})))
    for change in (
        {"data": {"x": None, "z": "1"}},
        {"data": None},
        {"metadata": {"labels": {"a": "b"}}},
        {"metadata": {"resourceVersion": "1"}},
    ):
        await scene.does(kube.patch(CONFIG_MAPS, "a", scene.namespace, change, manager="other"))
    await scene.does(kube.patch(CONFIG_MAPS, "b", scene.namespace, {"data": {}}))


async def applying(scene: Scene) -> None:
    kube = scene.kube

    async def apply(manager: str, *, force: bool = False, **data: str) -> None:
        manifest = scene.config_map(data=data)
        await scene.does(kube.apply(manifest, manager=manager, force=force))

    await apply("one", x="1", y="1")
    await apply("two", y="1", z="1")
    await apply("two", x="2", y="2")
    await apply("two", x="2", y="2", force=True)
    await apply("one", y="2")
    await apply("one")
    await apply("two")
    await scene.does(kube.apply(scene.config_map(), manager="one"))
    await scene.does(kube.apply(scene.config_map(), manager="two"))


async def applying_over_changes(scene: Scene) -> None:
    kube = scene.kube
    await scene.does(kube.apply(scene.config_map(data={"x": "1"}), manager="one"))
    change = {"data": {"x": "2"}}
    await scene.does(kube.patch(CONFIG_MAPS, "a", scene.namespace, change, manager="other"))
    await scene.does(kube.apply(scene.config_map(data={"x": "1"}), manager="one"))
    await scene.does(kube.apply(scene.config_map(data={"x": "2"}), manager="one"))
    await scene.does(kube.apply(scene.config_map(data={"x": "1"}), manager="one", force=True))


async def applying_elements(scene: Scene) -> None:
    kube = scene.kube

    def deployment(*containers: Manifest) -> Manifest:
        labels = {"app": "a"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": list(containers)}}
        spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
        return scene.object("Deployment", spec=spec)

    async def fields(manager: str, *containers: Manifest, force: bool = False) -> None:
        try:
            found = await kube.apply(deployment(*containers), manager=manager, force=force)
        except ApiError as error:
            scene.record.append(sorted((cause.reason, cause.field) for cause in error.causes))
            return
        named = found["spec"]["template"]["spec"]["containers"]
        scene.record.append([(each["name"], each["image"], each.get("env")) for each in named])

    one = {"name": "one", "image": "x:1", "env": [{"name": "E", "value": "1"}]}
    two = {"name": "two", "image": "y:1"}
    await fields("one", one)
    await fields("two", two)
    await fields("two", {**one, "image": "x:2"}, two)
    await fields("two", {**one, "env": [{"name": "F", "value": "1"}]}, two)
    await fields("two", {**one, "image": "x:2"}, two, force=True)
    await fields("one", {"name": "one", "image": "x:2"})
    await fields("two", two)
    await fields("one", one)


async def status(scene: Scene) -> None:
    kube = scene.kube
    labels = {"app": "a"}
    container = {"name": "c", "image": "x:1"}
    spec = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    manifest = scene.object("Deployment", name="s", spec=spec)
    await kube.apply({**manifest, "status": {"observedGeneration": 7}}, manager="one")
    condition = {"type": "Odd", "status": "True", "reason": "R", "message": ""}
    times = dict.fromkeys(("lastTransitionTime", "lastUpdateTime"), "2026-01-01T00:00:00Z")
    change = scene.object("Deployment", name="s", status={"conditions": [{**condition, **times}]})
    await kube.apply(change, manager="two", subresource="status")
    found = await kube.get(DEPLOYMENTS, "s", scene.namespace)
    named = [each["type"] for each in found["status"]["conditions"]]
    owners = {
        (each["manager"], each["operation"], each.get("subresource", ""))
        for each in found["metadata"]["managedFields"]
    }
    scene.record.append((found["metadata"]["generation"], "Odd" in named))
    scene.record.append(sorted(owners & {("one", "Apply", ""), ("two", "Apply", "status")}))
    absent = scene.object("Deployment", name="none", status={})
    await scene.does(kube.apply(absent, manager="two", subresource="status"))


async def deleting(scene: Scene) -> None:
    kube, namespace = scene.kube, scene.namespace
    finalizers = {"finalizers": ["test.example/hold"]}
    made = await scene.does(kube.create(scene.config_map(metadata=finalizers)))
    await scene.does(kube.delete(CONFIG_MAPS, "a", namespace, uid="another"))
    await scene.does(kube.delete(CONFIG_MAPS, "a", namespace, uid=made["metadata"]["uid"]))
    held = await scene.does(kube.get(CONFIG_MAPS, "a", namespace))
    scene.record.append(held["metadata"].get("deletionTimestamp") is not None)
    await kube.patch(CONFIG_MAPS, "a", namespace, {"metadata": {"finalizers": None}})
    await scene.does(kube.get(CONFIG_MAPS, "a", namespace))
    await scene.does(kube.delete(CONFIG_MAPS, "a", namespace))


async def listing(scene: Scene) -> None:
    kube = scene.kube
    for number in range(7):
        labels = {"odd": str(number % 2), **({"first": "yes"} if not number else {})}
        await kube.create(scene.object("Lease", name=f"l{number}", metadata={"labels": labels}))
    for selector in (
        "odd=1",
        "odd!=1",
        "first",
        "!first,odd=0",
        "odd in (0,1),first notin (yes)",
        "x!=1",
        "odd==0",
    ):
        found = await kube.list(LEASES, scene.namespace, labels=selector, limit=2)
        kinds = {each["kind"] for each in found.items}
        scene.record.append((selector, [each["metadata"]["name"] for each in found.items], kinds))
    found = await kube.list(LEASES, scene.namespace, fields="metadata.name=l3")
    scene.record.append([each["metadata"]["name"] for each in found.items])
    for selector in ("odd in", "a b"):
        try:
            await kube.list(LEASES, scene.namespace, labels=selector)
        except ApiError as error:
            scene.record.append((selector, error.status, error.reason))


async def watching(scene: Scene) -> None:
    kube, namespace = scene.kube, scene.namespace

    def made(name: str, **labels: str) -> Manifest:
        return scene.object("ServiceAccount", name=name, metadata={"labels": labels})

    start = (await kube.create(made("w", k="v")))["metadata"]["resourceVersion"]
    await kube.create(made("v", k="v"))
    await kube.patch(SERVICE_ACCOUNTS, "w", namespace, {"metadata": {"labels": {"k": "other"}}})
    await kube.patch(SERVICE_ACCOUNTS, "w", namespace, {"metadata": {"labels": {"k": "v"}}})
    await kube.patch(SERVICE_ACCOUNTS, "v", namespace, {"metadata": {"annotations": {"k": "v"}}})
    await kube.delete(SERVICE_ACCOUNTS, "v", namespace)
    await kube.delete(SERVICE_ACCOUNTS, "w", namespace)
    for labels in ("", "k=v", "k=other"):
        wanted, seen = {"": 6, "k=v": 7, "k=other": 2}[labels], []
        async with kube.watch(
            SERVICE_ACCOUNTS, namespace, resource_version=start, labels=labels, seconds=20
        ) as events:
            async for event in events:
                if event.type != "BOOKMARK" and event.object["metadata"]["name"] != "default":
                    seen.append((event.type, event.object["metadata"]["name"]))
                if len(seen) == wanted:
                    break
        scene.record.append((labels, seen))


async def watching_from_a_version_that_is_yet_to_come(scene: Scene) -> None:
    kube, namespace = scene.kube, scene.namespace
    async with kube.watch(
        SERVICE_ACCOUNTS, namespace, resource_version="9" * 15, seconds=4
    ) as events:
        await kube.create(scene.object("ServiceAccount"))
        scene.record.append([event.type async for event in events])


async def discovering(scene: Scene) -> None:
    scene.record.append(await scene.kube.has(PODS))
    scene.record.append(await scene.kube.has(PODS.__class__("none.example", "v1", "xs", "X")))
    scene.record.append(await scene.kube.has(PODS.__class__("", "v1", "xs", "X")))
    unknown = {"apiVersion": "none.example/v1", "kind": "X", "metadata": {"name": "a"}}
    await scene.does(scene.kube.create(unknown))


@pytest.mark.parametrize(
    "play",
    [
        creating,
        replacing,
        patching,
        applying,
        applying_over_changes,
        applying_elements,
        status,
        deleting,
        listing,
        watching,
        watching_from_a_version_that_is_yet_to_come,
        discovering,
    ],
)
async def test_both_say_the_same(
    play: Callable[[Scene], Awaitable[None]], kube: Kube, namespace: str
) -> None:
    real = Scene(kube, namespace)
    await play(real)
    cluster = FakeCluster()
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    async with cluster.open() as client:
        fake = Scene(client, namespace)
        await play(fake)
    assert real.record
    assert fake.record == real.record
