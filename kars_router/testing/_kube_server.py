"""What the API server of a fake cluster does about a request.

Owns the meaning of requests. Objects are `_kube_store`'s, ownership of fields is
`_kube_fields`'. Knows no HTTP and no faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from attrs import define, field

from kars_router.kube.resources import KARS, NAMESPACES, SELF_REVIEWS, Resource, name_of
from kars_router.testing._kube_fields import (
    Clash,
    Manager,
    Manifest,
    Owners,
    apply,
    leaves,
    merge,
    without,
)
from kars_router.testing._kube_selectors import Matcher, matcher
from kars_router.testing._kube_store import Key, Store, has_status
from kars_router.testing._kube_watch import WatchBody
from kars_router.testing._kube_wire import Answer, Refused, Seen, answer, group_of

# What is wrong with an object: field and sentence of each mistake.
Check = Callable[[Manifest], Iterable[tuple[str, str]]]


@define(eq=False)
class Server:
    """Carries out requests.

    Attributes:
        served: the kinds that there are.
        store: the objects.
        token: what requests have to bring; nothing if it is empty.
        bookmark_seconds: between bookmarks.
        breaks: whether a watch breaks off before its next event.
        checks: what is said against objects of a kind.
        watches: those that may be open.
    """

    served: set[Resource]
    store: Store
    token: str
    bookmark_seconds: float
    breaks: Callable[[], bool]
    checks: dict[Resource, Check] = field(factory=dict)
    watches: set[WatchBody] = field(factory=set)
    _pages: dict[str, tuple[list[Manifest], int]] = field(factory=dict)
    _page_count: int = 0

    def forget(self) -> None:
        """Forgets old versions and pages."""
        self.store.forget()
        self._pages.clear()

    def answer(self, seen: Seen) -> Answer:
        """Does what a request asks for."""
        try:
            if self.token and seen.headers.get("authorization") != f"Bearer {self.token}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            if seen.verb == "discover":
                return answer(self._discovery(seen.path))
            if seen.resource is None:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            return self._request(seen, seen.resource)
        except Refused as refused:
            return refused.answer

    def _request(self, seen: Seen, resource: Resource) -> Answer:
        match seen.verb:
            case "get":
                return answer(self._found(seen, resource))
            case "list":
                return answer(self._list(seen, resource))
            case "watch":
                return self._watch(seen, resource)
            case "create":
                return answer(self._create(seen, resource), 201)
            case "update":
                return answer(self._update(seen, resource, seen.body))
            case "patch":
                old = self._found(seen, resource)
                return answer(self._update(seen, resource, merge(old, seen.body)))
            case "apply":
                return answer(self._apply(seen, resource))
            case "delete":
                return answer(self._delete(seen, resource))
            case _:
                raise Refused(405, "MethodNotAllowed", "the server does not allow this method")

    def _discovery(self, path: str) -> Manifest:
        group, version = group_of(path)
        found = [each for each in self.served if (each.group, each.version) == (group, version)]
        if not found:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        listed = [
            {"name": each.plural, "kind": each.kind, "namespaced": each.namespaced, "verbs": []}
            for each in sorted(found, key=lambda each: each.plural)
        ]
        version_name = f"{group}/{version}".strip("/")
        return {"kind": "APIResourceList", "groupVersion": version_name, "resources": listed}

    def _found(self, seen: Seen, resource: Resource) -> Manifest:
        found = self.store.find(resource, (seen.namespace or "", seen.name))
        if found is None:
            text = f'{_plural(resource)} "{seen.name}" not found'
            raise Refused(404, "NotFound", text)
        return found

    def _list(self, seen: Seen, resource: Resource) -> Manifest:
        token = seen.query.get("continue")
        if token:
            if token not in self._pages:
                raise Refused(410, "Expired", "The provided continue parameter is too old.")
            items, version = self._pages.pop(token)
        else:
            selected = self._selector(seen)
            items = [each for each in self.store.all(resource, seen.namespace) if selected(each)]
            version = self.store.version
        limit = int(seen.query.get("limit", "0")) or len(items)
        metadata: Manifest = {"resourceVersion": str(version)}
        if len(items) > limit:
            self._page_count += 1
            token = f"page-{self._page_count}"
            self._pages[token] = (items[limit:], version)
            metadata |= {"continue": token, "remainingItemCount": len(items) - limit}
        # A real server leaves these out of the items of its own kinds.
        hidden = {"apiVersion", "kind"} if resource.group != KARS else set()
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": [
                {name: value for name, value in each.items() if name not in hidden}
                for each in items[:limit]
            ],
        }

    def _watch(self, seen: Seen, resource: Resource) -> Answer:
        self.watches = {watch for watch in self.watches if not watch.over}
        watch = WatchBody(
            self.store,
            resource,
            seen,
            self._selector(seen),
            breaks=self.breaks,
            bookmark_seconds=self.bookmark_seconds,
        )
        self.watches.add(watch)
        return Answer(200, watch, {"content-type": "application/json"})

    def _selector(self, seen: Seen) -> Matcher:
        query = seen.query
        try:
            return matcher(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        except ValueError as error:
            raise Refused(400, "BadRequest", str(error)) from None

    def _create(self, seen: Seen, resource: Resource) -> Manifest:
        wanted = self._checked(seen, resource, seen.body)
        if resource == SELF_REVIEWS:
            return {**wanted, "status": {"allowed": True}}
        key = key_of(resource, wanted)
        if key[1] and self.store.find(resource, key) is not None:
            raise Refused(409, "AlreadyExists", f'{_plural(resource)} "{key[1]}" already exists')
        made = without(wanted, {"status"} if has_status(resource) else ())
        return self._keep(seen, resource, made, {_manager(seen): set(leaves(made))})

    def _update(self, seen: Seen, resource: Resource, wanted: Any) -> Manifest:
        old = self._found(seen, resource)
        wanted = self._checked(seen, resource, wanted)
        version = wanted["metadata"].get("resourceVersion")
        if version and version != old["metadata"]["resourceVersion"]:
            text = (
                f'Operation cannot be fulfilled on {_plural(resource)} "{seen.name}": the object'
                " has been modified; please apply your changes to the latest version and try again"
            )
            raise Refused(409, "Conflict", text)
        new = self._part(seen, resource, old, wanted)
        if seen.query.get("dryRun"):
            return new
        key = (seen.namespace or "", seen.name)
        return self.store.change(resource, key, new, _manager(seen))

    def _apply(self, seen: Seen, resource: Resource) -> Manifest:
        wanted = self._checked(seen, resource, seen.body)
        if "managedFields" in wanted["metadata"]:
            raise Refused(400, "BadRequest", "metadata.managedFields must be nil")
        manager = Manager(seen.query["fieldManager"], "Apply", seen.subresource)
        key = (seen.namespace or "", seen.name)
        old = self.store.find(resource, key)
        if old is None and seen.subresource:
            self._found(seen, resource)
        owners = self.store.owners(resource, key)
        if seen.subresource:
            wanted = {"status": wanted.get("status", {})}
        elif has_status(resource):
            wanted = without(wanted, {"status"})
        force = seen.query.get("force") == "true"
        new, clashes = apply(old or {}, wanted, owners, manager, force=force)
        if clashes:
            raise _conflict(clashes)
        if old is None:
            new["metadata"] = {**new.get("metadata", {}), **_names(seen.body), "name": seen.name}
            new |= {"apiVersion": resource.api_version, "kind": resource.kind}
            return self._keep(seen, resource, new, owners)
        if seen.query.get("dryRun"):
            return new
        return self.store.change(resource, key, new, owners)

    def _keep(self, seen: Seen, resource: Resource, made: Manifest, owners: Owners) -> Manifest:
        if resource.namespaced:
            namespace = seen.namespace or "default"
            if self.store.find(NAMESPACES, ("", namespace)) is None:
                raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
            made["metadata"]["namespace"] = namespace
        return made if seen.query.get("dryRun") else self.store.add(resource, made, owners)

    def _part(self, seen: Seen, resource: Resource, old: Manifest, wanted: Manifest) -> Manifest:
        """What a request may change: the status, or everything else."""
        if seen.subresource == "status":
            return {**deepcopy(old), "status": deepcopy(wanted.get("status", {}))}
        if not has_status(resource):
            return deepcopy(wanted)
        kept = {"status": deepcopy(old["status"])} if "status" in old else {}
        return without(wanted, {"status"}) | kept

    def _delete(self, seen: Seen, resource: Resource) -> Manifest:
        found = self._found(seen, resource)
        options = seen.body if isinstance(seen.body, dict) else {}
        uid = (options.get("preconditions") or {}).get("uid")
        if uid is not None and uid != found["metadata"]["uid"]:
            raise Refused(409, "Conflict", f"the UID in the precondition ({uid}) does not match")
        if seen.query.get("dryRun"):
            return found
        orphan = options.get("propagationPolicy") == "Orphan"
        return self.store.delete(resource, (seen.namespace or "", seen.name), orphan=orphan)

    def _checked(self, seen: Seen, resource: Resource, given: Any) -> Manifest:
        if not isinstance(given, dict) or not isinstance(given.get("metadata"), dict):
            raise Refused(400, "BadRequest", "the body of the request is no object")
        namespace, name = name_of(given)
        if seen.name and name != seen.name:
            raise Refused(400, "BadRequest", "the name of the object does not match the URL")
        if resource.namespaced and namespace not in {None, seen.namespace}:
            raise Refused(400, "BadRequest", "the namespace of the object does not match the URL")
        manifest: Manifest = deepcopy(given)
        if resource.namespaced:
            manifest["metadata"]["namespace"] = seen.namespace
        check = self.checks.get(resource)
        mistakes = list(check(manifest)) if check is not None else []
        if mistakes:
            causes = [
                {"reason": "FieldValueInvalid", "field": field, "message": message}
                for field, message in mistakes
            ]
            listed = ", ".join(f"{field}: {message}" for field, message in mistakes)
            text = f'{resource.kind}.{resource.group} "{name}" is invalid: {listed}'
            raise Refused(422, "Invalid", text, causes=causes)
        return manifest


def key_of(resource: Resource, manifest: Mapping[str, Any]) -> Key:
    """Where an object is kept."""
    namespace, name = name_of(manifest)
    return ((namespace or "default") if resource.namespaced else "", name)


def _names(manifest: Manifest) -> Manifest:
    """What of an object's metadata nobody owns, but whoever makes it gives."""
    kept = ("name", "namespace", "generateName")
    return {name: manifest["metadata"][name] for name in kept if name in manifest["metadata"]}


def _manager(seen: Seen) -> Manager:
    agent = seen.headers.get("user-agent", "unknown").partition("/")[0]
    return Manager(seen.query.get("fieldManager") or agent, "Update", seen.subresource)


def _conflict(clashes: Sequence[Clash]) -> Refused:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{clash.manager.name}"',
            "field": clash.field,
        }
        for clash in clashes
    ]
    one = "1 conflict" if len(causes) == 1 else f"{len(causes)} conflicts"
    listed = "\n".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    return Refused(409, "Conflict", f"Apply failed with {one}: {listed}", causes=causes)


def _plural(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural
