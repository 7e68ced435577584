"""Whether the SDK runs, and for whom.

The SDK runs from the first governor or sink to the close of the last. Governors are made anew with
each policy, so that at times there are two sets of them; those of a policy that was refused are
never closed, but dropped. Must not know what is exported.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from attrs import define, field

from kars_plugin_otel.meters import Meters, Sessions
from kars_plugin_otel.options import Options

if TYPE_CHECKING:
    from kars_plugin_otel.export import Export, Health


@define(eq=False)
class Running:
    """The SDK of one plugin.

    Attributes:
        options: what it is started with the next time.
        sessions: the upstream sessions that live.
        export: the SDK while it runs.
        meters: its instruments, if there are metrics.
        health: what became of exports; None before the first start.
    """

    options: Options = field(factory=Options)
    sessions: Sessions = field(factory=Sessions)
    export: Export | None = field(default=None, init=False)
    meters: Meters | None = field(default=None, init=False)
    health: Health | None = field(default=None, init=False)
    _users: weakref.WeakSet[object] = field(factory=weakref.WeakSet, init=False)

    def acquire(self, user: object) -> None:
        """Starts the SDK unless it runs; it runs until its last user has released it.

        Raises:
            ValueError: an `OTEL_*` variable has a value that the SDK refuses.
        """
        if self.export is None:
            # Imported here, so that commands that only list plugins do not wait for it.
            from kars_plugin_otel.export import Export, Health

            self.health = self.health or Health()
            self.export = Export(self.options, self.health)
            if self.export.meter is not None:
                self.meters = Meters(self.export.meter, self.sessions)
        self._users.add(user)

    async def release(self, user: object) -> None:
        """Stops the SDK after its last user; exports what is queued, within two seconds."""
        self._users.discard(user)
        if not self._users and self.export is not None:
            export, self.export, self.meters = self.export, None, None
            await export.stop()
