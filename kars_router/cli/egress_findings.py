"""What attempts to connect show of a network, taken together.

Owns the verdicts and what has to be said beside them. Pure: connects nowhere.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, Literal

from attrs import frozen

from kars_router.cli.egress_connect import Attempt, Ending

Verdict = Literal["as expected", "unexpected", "unclear"]

# What it means that an address where nobody is had the same answer.
_INSTEAD: Final = {
    Ending.CONNECTED: (
        "Even an address where nobody is accepted a connection: something on the way answers in "
        "the place of every destination, so that a connection shows nothing."
    ),
    Ending.REFUSED: (
        "An address where nobody is was refused as well: a firewall answers in the place of every "
        "destination, as `kars guard` does, and refusals are taken for its own."
    ),
}


@frozen(kw_only=True)
class Destination:
    """Something to connect to, or not.

    Attributes:
        host: a name or an address, IPv6 without brackets.
        port: the port.
        expected: whether a connection is to be made.
        whose: the servers that are there, or what it is.
    """

    host: str
    port: int
    expected: bool
    whose: tuple[str, ...]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen(kw_only=True)
class Findings:
    """All attempts of one run.

    Attributes:
        rows: each destination, and what came of it.
        nobody: what came of addresses where nobody is, one for each version of IP.
    """

    rows: tuple[tuple[Destination, Attempt], ...]
    nobody: tuple[Attempt, ...]

    def verdict(self, there: Destination, tried: Attempt) -> Verdict:
        """Whether an attempt ended as it should have, if it shows that."""
        if tried.ending is Ending.CONNECTED:
            if self._for_everybody(Ending.CONNECTED, tried):
                return "unclear"
            return "as expected" if there.expected else "unexpected"
        if there.expected:
            return "unexpected"
        if tried.ending is Ending.UNRESOLVED:  # there may be a way to where the name leads
            return "unclear"
        if tried.ending is Ending.REFUSED and not self._for_everybody(Ending.REFUSED, tried):
            return "unclear"
        return "as expected"

    def notes(self) -> list[str]:
        """What the attempts together do not show, or only together."""
        outside = [(there, tried) for there, tried in self.rows if not _is_here(tried)]
        notes = [
            said
            for ending, said in _INSTEAD.items()
            if any(
                tried.ending is ending and self._for_everybody(ending, tried)
                for _, tried in outside
            )
        ]
        connected = any(tried.ending is Ending.CONNECTED for _, tried in outside)
        silent = any(
            tried.ending is Ending.TIMEOUT and not there.expected for there, tried in self.rows
        )
        if silent and not connected:
            notes.append(
                "Nothing outside of the pod was reached, so that a network which is down or slow "
                "would look the same as one that denies."
            )
        return notes

    def _for_everybody(self, ending: Ending, tried: Attempt) -> bool:
        """Whether an address of nobody, of the same version of IP, had the same answer."""
        if _is_here(tried) or ending not in _INSTEAD:
            return False
        same = {_version(each.addresses[0]) for each in self.nobody if each.ending is ending}
        return {_version(each) for each in tried.addresses} <= same


def _is_here(tried: Attempt) -> bool:
    return all(ip_address(_bare(each)).is_loopback for each in tried.addresses)


def _version(address: str) -> int:
    return ip_address(_bare(address)).version


def _bare(address: str) -> str:
    return address.partition("%")[0]
