"""A Helm that answers what a test has written down, for what happens before anything real does.

Owns a program called `helm`. What a real Helm 4 answers is in tests/cluster.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, field, frozen


@frozen
class Said:
    """What a command prints, and its exit code."""

    out: str = ""
    err: str = ""
    code: int = 0


@define
class FakeHelm:
    """A directory for PATH, with a program in it.

    Args:
        directory: an empty one.
        version: what it says of itself.
    """

    directory: Path
    version: str = "v4.3.2"
    answers: dict[str, Said] = field(factory=dict)

    def say(self, words: str, out: object = "", *, err: str = "", code: int = 0) -> None:
        """Has the commands that begin with these words answer so; the last ones that fit count."""
        text = out if isinstance(out, str) else json.dumps(out)
        self.answers.pop(words, None)
        self.answers = {words: Said(text, err, code), **self.answers}
        self._write()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables with which it is found, and no other Helm."""
        self._write()
        return {**environ, "PATH": f"{self.directory}:/usr/bin:/bin"}

    def asked(self) -> list[str]:
        """The commands so far, but for its version."""
        log = self.directory / "log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return [each for each in lines if not each.startswith("version ")]

    def _write(self) -> None:
        lines = [
            "#!/bin/sh",
            f'printf "%s\\n" "$*" >> {shlex.quote(str(self.directory / "log"))}',
            'case "$* " in',
            f'"version "*) echo {shlex.quote(self.version)};;',
        ]
        for words, said in self.answers.items():
            lines.append(f"{shlex.quote(f'{words} ')}*)")
            lines.append(f"printf %s {shlex.quote(said.out)}")
            lines.append(f"printf %s {shlex.quote(said.err)} >&2; exit {said.code};;")
        lines += ['*) echo "Error: nobody has said what to answer to $*" >&2; exit 1;;', "esac"]
        program = self.directory / "helm"
        program.write_text("\n".join([*lines, ""]), encoding="utf-8")
        program.chmod(0o755)


def revision(number: int, status: str = "deployed", chart: str = "kars-operator-0.1.0") -> Any:
    """A revision, as `helm history` has it."""
    return {
        "revision": number,
        "updated": "2030-01-02T03:04:05.678901234Z",
        "status": status,
        "chart": chart,
        "app_version": "0.1.0",
        "description": "Install complete",
    }
