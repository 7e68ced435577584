"""The custom resource definitions of a chart, which Helm installs once and never upgrades.

Owns their pre-flight and their apply, in Helm's name as on the day they were installed. On the way
back to an older chart they stay: what newer objects have, an older definition would drop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import trio

from kars_router.errors import UserError
from kars_router.kube import ConflictError, Kube
from kars_router.kube.resources import CRDS
from kars_router.upgrade import MANAGER
from kars_router.upgrade.conflicts import owner_of
from kars_router.upgrade.manifests import Manifest
from kars_router.upgrade.preflight import Checked, Preflight

_PATIENCE: Final = 30.0  # seconds until the server serves a new kind
_PAUSE: Final = 0.2


async def check(preflight: Preflight, definitions: Iterable[Manifest]) -> tuple[Checked, ...]:
    """Checks definitions.

    Args:
        preflight: for the release; what Helm has updated counts as its own here.
        definitions: of the chart.

    Raises:
        ApiError: the server refused to answer.
        UndeterminedError: it cannot do a dry run.
    """
    return tuple([await preflight.check(each) for each in definitions])


async def apply(kube: Kube, checked: Sequence[Checked], *, force: bool) -> None:
    """Applies those that are new or changed, and waits until their kinds are served.

    Args:
        kube: the API server.
        checked: definitions without a problem.
        force: whether fields of others may be taken.

    Raises:
        ApiError: the server refused.
        UserError: somebody has taken a field meanwhile.
    """
    for each in checked:
        if each.change.action == "none":
            continue
        # What Helm itself has updated is taken in any case. That others own nothing of it is known.
        try:
            await kube.apply(each.wanted, manager=MANAGER, force=force, strict=True)
        except ConflictError as error:
            if force or not _only_ours(error):
                raise UserError(
                    f"{each.reference} was changed by somebody else meanwhile: {error.message}"
                ) from error
            await kube.apply(each.wanted, manager=MANAGER, force=True, strict=True)
        if each.live is None:
            await _wait_until_served(kube, each.reference.name)


def _only_ours(error: ConflictError) -> bool:
    owners = [owner_of(each.message) for each in error.causes]
    return bool(owners) and all(
        owner is not None and owner.manager == MANAGER and not owner.subresource for owner in owners
    )


async def _wait_until_served(kube: Kube, name: str) -> None:
    with trio.move_on_after(_PATIENCE):
        while True:
            found = await kube.get(CRDS, name)
            conditions = (found.get("status") or {}).get("conditions") or ()
            if any(
                each.get("type") == "Established" and each.get("status") == "True"
                for each in conditions
            ):
                return
            await trio.sleep(_PAUSE)
