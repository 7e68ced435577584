"""How much of a call's arguments conditions and schemas are given.

Pure. Compilers in C++ and Rust recurse over what they are given; an agent must not be able to run
them out of stack, nor to buy minutes of their time with one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

DEEPEST: Final = 64
LARGEST: Final = 10_000  # members and elements; also the number of steps that CEL takes
LONGEST: Final = 256 << 10  # bytes of the params as JSON, and characters of all strings
# What a condition may look at that goes through the whole for each of its parts; about a quarter
# of a second at worst.
BUSIEST: Final = 4_000_000


@frozen
class Measure:
    """How large the arguments of a call are.

    Attributes:
        beyond: the bound that they are beyond, as a clause without anything of the call in it, or
            None.
        work: what it takes to go through all of them for each of them.
    """

    beyond: str | None
    work: int = 0


def measure(arguments: Mapping[str, Any], params: bytes) -> Measure:
    """Measures arguments, without recursion and no longer than the bounds allow.

    Args:
        arguments: decoded JSON.
        params: the params that hold them, as JSON.
    """
    if len(params) > LONGEST:
        return _TOO_LONG
    count = characters = depth = 0
    level: list[Any] = [arguments]
    while level:
        depth += 1
        if depth > DEEPEST:
            return Measure(f"the arguments are nested more than {DEEPEST} deep")
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                characters += sum(map(len, value))
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str):
                characters += len(value)
        count += len(deeper)
        if count > LARGEST:
            return Measure(f"the arguments hold more than {LARGEST} values")
        level = deeper
    return _TOO_LONG if characters > LONGEST else Measure(None, count * (count + characters))


_TOO_LONG: Final = Measure(f"the arguments have more than {LONGEST >> 10} KiB")
