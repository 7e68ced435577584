"""One set of rules: the plugins' objects that belong to one set of policies, and who uses them.

Must not know policies, nor which set is in force.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from attrs import define

from kars_router.barriers import GuardedGovernor, GuardedTransformer


@define(eq=False)
class Rules:
    """The governors and transformers that belong to one set of policies.

    Attributes:
        governors: in the order in which they are asked.
        transformers: in the order in which arguments pass them.
        users: calls that they have been asked about and that have not ended.
        retired: whether another set has taken their place.
    """

    governors: Sequence[GuardedGovernor] = ()
    transformers: Sequence[GuardedTransformer] = ()
    users: int = 0
    retired: bool = False

    async def let_go(self) -> None:
        """Closes the governors of a retired set once no call needs them; bounded."""
        if self.retired and not self.users:
            with trio.CancelScope(shield=True):  # each is bounded
                async with trio.open_nursery() as nursery:
                    for each in self.governors:
                        nursery.start_soon(each.aclose)
