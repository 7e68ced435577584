"""Lists of objects, put together from their pages.

Owns what is done about pages that the server has forgotten, and about those that are too large.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from kars_router.kube.answers import TooLargeError
from kars_router.kube.errors import AnswerError, GoneError
from kars_router.kube.requests import Request, Requester
from kars_router.kube.resources import Resource

_RESTARTS: Final = 3
_SMALLER: Final = 8


@frozen
class Listing:
    """All objects of a kind at one moment.

    Attributes:
        items: each with its `apiVersion` and `kind`.
        resource_version: where a watch goes on from.
    """

    items: list[dict[str, Any]]
    resource_version: str


async def collect(
    requests: Requester,
    resource: Resource,
    namespace: str | None,
    *,
    query: Mapping[str, str],
    limit: int,
) -> Listing:
    """Asks for all pages of a list.

    Args:
        requests: sends the requests.
        resource: the kind.
        namespace: None for all.
        query: the selectors.
        limit: objects on a page.

    Raises:
        ApiError, UnreachableError, UserError: as `Kube` says.
    """
    path = resource.path(namespace)
    restarts = 0
    while True:
        pages = {**query, "limit": str(limit)} if limit else query
        try:
            return await _pages(requests, resource, path, pages)
        except GoneError:
            restarts += 1
            if restarts > _RESTARTS:
                raise
            if restarts == _RESTARTS:
                # One that takes longer than the server remembers has to come in one piece.
                limit = 0
        except TooLargeError:
            if limit <= 1:
                raise
            limit = max(1, limit // _SMALLER)


async def _pages(
    requests: Requester, resource: Resource, path: str, query: Mapping[str, str]
) -> Listing:
    items: list[dict[str, Any]] = []
    token = ""
    while True:
        more = {"continue": token} if token else {}
        page = await requests.ask(
            Request(method="GET", path=path, query={**query, **more}, repeatable=True)
        )
        found, metadata = page.get("items") or [], page.get("metadata")
        if not isinstance(metadata, dict) or not _are_objects(found):
            raise AnswerError(f"{requests.where} answers with something that is no list")
        for each in found:
            # The server leaves out of items what the list says of all of them.
            each.setdefault("apiVersion", resource.api_version)
            each.setdefault("kind", resource.kind)
        items += found
        before, token = token, str(metadata.get("continue") or "")
        if not token:
            return Listing(items, str(metadata.get("resourceVersion", "")))
        if token == before:
            raise AnswerError(f"{requests.where} answers with the same page of a list for ever")


def _are_objects(found: object) -> bool:
    return isinstance(found, list) and all(
        isinstance(each, dict) and isinstance(each.get("metadata"), dict) for each in found
    )
