"""Which sandboxes have to be looked at again when something changes that they do not name.

Owns what was looked up for each of them. Pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from attrs import define, field

from kars_operator.store import Key

_K = TypeVar("_K", bound=Hashable)


@define(eq=False)
class Links:
    """Services that the egress of sandboxes was derived from, and the namespaces of their pods."""

    _services: dict[Key, set[Key]] = field(factory=dict, init=False)
    _homes: dict[str, set[Key]] = field(factory=dict, init=False)
    _of: dict[Key, tuple[frozenset[Key], str]] = field(factory=dict, init=False)

    def note(self, sandbox: Key, services: Iterable[Key], namespace: str) -> None:
        """Takes note of what one sandbox depends on now.

        Args:
            sandbox: which one.
            services: the Services that were looked up, whether or not they were there.
            namespace: where its pods are.
        """
        self.forget(sandbox)
        self._of[sandbox] = frozenset(services), namespace
        for service in self._of[sandbox][0]:
            self._services.setdefault(service, set()).add(sandbox)
        self._homes.setdefault(namespace, set()).add(sandbox)

    def forget(self, sandbox: Key) -> None:
        """There is no such sandbox any more."""
        services, namespace = self._of.pop(sandbox, (frozenset(), ""))
        for service in services:
            _take_out(self._services, service, sandbox)
        _take_out(self._homes, namespace, sandbox)

    def using(self, service: Key) -> tuple[Key, ...]:
        """The sandboxes whose egress depends on a Service."""
        return tuple(self._services.get(service, ()))

    def living_in(self, namespace: str) -> tuple[Key, ...]:
        """The sandboxes whose pods are in a namespace."""
        return tuple(self._homes.get(namespace, ()))


def _take_out(found: dict[_K, set[Key]], key: _K, sandbox: Key) -> None:
    present = found.get(key)
    if present is not None:
        present.discard(sandbox)
        if not present:
            del found[key]
