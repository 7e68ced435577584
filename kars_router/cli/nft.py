"""Running nft: loading rules, reading them back, and saying in a sentence why it could not.

Owns the program, its errors and how rules in force are compared with those wanted. Knows no rule.
"""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import frozen

from kars_router.errors import UndeterminedError

_SECONDS: Final = 30.0
_SYSTEM: Final = "/usr/sbin:/sbin:/usr/local/sbin"  # where it is, and where PATH may not look
_DORMANT: Final = "\tflags dormant"
# Exists for the first network namespace only: what it bounds is the whole machine's.
_FIRST_ONLY: Final = Path("/proc/sys/net/core/netdev_budget")

# What nft says, and what that means here. The first that fits counts.
_MEANING: Final = (
    (
        ("Operation not permitted", "must be root"),
        (
            "it may not change the pod's network: run it as user 0 with the capability NET_ADMIN "
            "(the container's securityContext: runAsUser 0, and NET_ADMIN in capabilities.add)"
        ),
    ),
    (
        ("Protocol not supported", "Address family not supported", "Netlink socket"),
        (
            "this kernel has no nf_tables, so the agent cannot be held back on this node; load the "
            "module nf_tables there, or choose another node or runtime"
        ),
    ),
)
# Words of a rule, and what a kernel needs for it.
_FEATURES: Final = (
    ("fib ", "nft_fib_inet"),
    ("reject", "nft_reject_inet"),
    ("skuid", "nf_tables with `meta skuid`"),
    ("table inet", "nf_tables for IPv4 and IPv6 together (nf_tables_inet)"),
    ("type filter hook", "nf_tables for IPv4 and IPv6 together (nf_tables_inet)"),
)
_LACKING: Final = ("No such file or directory", "Operation not supported", "Not supported")


@frozen
class Nft:
    """The program nft.

    Attributes:
        program: where it is.
    """

    program: str

    @classmethod
    def find(cls) -> Nft:
        """Looks for it on PATH and where systems keep it.

        Raises:
            UndeterminedError: there is none.
        """
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), _SYSTEM])
        program = shutil.which("nft", path=path)
        if program is None:
            raise UndeterminedError(
                "there is no nft here, without which the agent cannot be held back; install the "
                "package nftables in the image"
            )
        return cls(program)

    def load(self, rules: str) -> None:
        """Applies rules, all of them or none.

        Raises:
            UndeterminedError: they were refused; nothing has changed.
        """
        done = self._run("-f", "-", text=rules)
        if done.returncode != 0:
            raise _refused(done.stderr, rules)

    def listing(self, table: str) -> list[str] | None:
        """The lines of a table as nft writes them, without what counters have counted.

        Returns:
            None if there is no such table.

        Raises:
            UndeterminedError: it could not be read.
        """
        done = self._run("--stateless", "list", "table", "inet", table)
        if done.returncode == 0:
            return done.stdout.splitlines()
        if "No such file or directory" in done.stderr and table in done.stderr:
            return None
        raise _refused(done.stderr, "")

    def differences(self, table: str, wanted: Callable[[str], str]) -> list[str] | None:
        """How the rules in force differ from those that are wanted.

        Each version of nft writes rules in its own way. So the wanted ones are loaded beside those
        in force, dormant, for as long as it takes to list both; they hold nobody to anything.
        (Rather than JSON, in which nft 1.0.6 names no flags, so that dormant rules look in force.)

        Args:
            table: the table that should be in force.
            wanted: gives the dormant rules for a table of the name it is given.

        Returns:
            Lines that begin with `-` where one is missing and `+` where one is not wanted, or None
            if there is no such table at all.

        Raises:
            UndeterminedError: nft did not do its part.
        """
        found = self.listing(table)
        if found is None:
            return None
        copy = f"{table}_{secrets.token_hex(4)}"
        rules = wanted(copy)
        self.load(rules)
        try:
            listed = self.listing(copy) or []
        finally:
            self._run("delete", "table", "inet", copy)
        # All versions write a rule to a line, and a bracket as we do.
        if len(_lines(listed)) != len(_lines(rules[rules.index("{") :].splitlines())):
            raise UndeterminedError(
                f"{self.program} does not list the rules that it says it has loaded; find out what "
                "it is, or what else changes rules here"
            )
        expected = [line.replace(copy, table) for line in listed if line != _DORMANT]
        changed = difflib.unified_diff(_lines(expected), _lines(found), lineterm="", n=0)
        return [f"{line[0]} {line[1:]}" for line in list(changed)[2:] if line[0] in "+-"]

    def _run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - the arguments are ours
                [self.program, *arguments],
                input=text,
                env={"LC_ALL": "C", "PATH": _SYSTEM},
                capture_output=True,
                text=True,
                errors="backslashreplace",
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UndeterminedError(
                f"{self.program} did not end within {_SECONDS:g} seconds; look for what holds the "
                "node's network rules"
            ) from None
        except OSError as error:
            raise UndeterminedError(
                f"{self.program} cannot be run ({error.strerror or error}); install the package "
                "nftables in the image"
            ) from None


def is_machines_own_network() -> bool:
    """Whether the network here is the one that the machine started with, and no pod's."""
    return _FIRST_ONLY.exists()


def _lines(listing: list[str]) -> list[str]:
    return [line.strip() for line in listing if line.strip()]


def _refused(stderr: str, rules: str) -> UndeterminedError:
    """One sentence that names what to change."""
    for said, meaning in _MEANING:
        if any(each in stderr for each in said):
            return UndeterminedError(f"nft failed: {meaning}")
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any(each in stderr for each in _LACKING):
        # The second line repeats the rule at fault, the third points at its part.
        rule = next((line for line in lines if line in rules), "") if rules else ""
        for word, needed in _FEATURES:
            if rule and word in rule:
                return UndeterminedError(
                    f"nft failed: this kernel lacks {needed}, which the rule `{rule}` needs; load "
                    "that module on the node, or choose another node or runtime"
                )
    return UndeterminedError(f"nft failed: {lines[0] if lines else 'it did not say why'}")
