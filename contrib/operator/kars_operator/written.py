"""The statuses that were written last.

Owns what a new status is compared with. What a reflector shows may be older than what was written,
and a status that has changed there and back in the meantime would be taken for the one that is
there. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from kars_operator.store import Key, Object

Status = Mapping[str, Any]


@frozen
class _Last:
    """Of which object, what was written, and whether the API server has certainly taken it."""

    uid: str
    status: Status
    certain: bool


@define(eq=False)
class Written:
    """Statuses by the key of their object, all of one kind."""

    _last: dict[Key, _Last] = field(factory=dict, init=False)

    def last(self, key: Key, manifest: Object) -> Status:
        """The status of an object, as far as is known.

        Args:
            key: which one.
            manifest: as it was last seen.
        """
        last = self._last.get(key)
        if last is None or last.uid != manifest["metadata"].get("uid", ""):
            return manifest.get("status") or {}
        return last.status

    def is_there(self, key: Key, manifest: Object, status: Status) -> bool:
        """Whether an object has this status already, by all that is known."""
        last = self._last.get(key)
        same = status == self.last(key, manifest) == (manifest.get("status") or {})
        return same and (last is None or last.certain)

    def note(self, key: Key, manifest: Object, status: Status, *, certain: bool) -> None:
        """Takes note of a status that is being written, or, if that is certain, has been."""
        self._last[key] = _Last(manifest["metadata"].get("uid", ""), status, certain)

    def forget(self, key: Key) -> None:
        """There is no such object any more."""
        self._last.pop(key, None)
