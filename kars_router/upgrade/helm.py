"""Helm, the program: found, checked to be Helm 4, and run against one cluster and namespace.

Owns the words and variables that say which cluster is meant, so that Helm and our own client never
talk to two different ones. Knows nothing of releases.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio
from attrs import frozen

from kars_router.errors import UndeterminedError
from kars_router.update.text import one_line

_MAJOR: Final = 4
_ANSWER_SECONDS: Final = 120.0
_LONGEST: Final = 600  # characters of what Helm says that are repeated
# They would have Helm ask another server, or as somebody else, than what the flags say.
_OURS: Final = re.compile(r"HELM_(KUBE.*|NAMESPACE)\Z")


class HelmError(Exception):
    """Helm refused; the message is what it said, in one line."""


@frozen(kw_only=True)
class Cluster:
    """Which cluster and namespace are meant, as the user has said.

    Attributes:
        kubeconfig: the file, if one was named.
        context: the context in it, if one was named.
        namespace: of the release.
    """

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str = ""

    def for_helm(self) -> tuple[str, ...]:
        """The options for Helm."""
        return (*self._file(), *self._context("--kube-context"), "--namespace", self.namespace)

    def for_kubectl(self) -> tuple[str, ...]:
        """The options for kubectl; without the namespace, which a command gives itself."""
        return (*self._file(), *self._context("--context"))

    def _file(self) -> tuple[str, ...]:
        return ("--kubeconfig", str(self.kubeconfig)) if self.kubeconfig is not None else ()

    def _context(self, name: str) -> tuple[str, ...]:
        return (name, self.context) if self.context is not None else ()


@frozen
class Helm:
    """Helm, for one cluster and namespace.

    Attributes:
        program: where it is.
        cluster: which cluster is meant.
        environ: its variables.
    """

    program: str
    cluster: Cluster
    environ: Mapping[str, str]

    def command(self, *words: str) -> list[str]:
        """The whole command."""
        return [self.program, *words, *self.cluster.for_helm()]

    async def ask(self, *words: str) -> str:
        """Runs a command that changes nothing; its stdout.

        Raises:
            HelmError: it failed.
            UndeterminedError: it did not end.
        """
        with trio.move_on_after(_ANSWER_SECONDS):
            done = await trio.run_process(
                self.command(*words),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self.environ,
            )
            if done.returncode:
                raise HelmError(what_it_said(done.stderr))
            return done.stdout.decode("utf-8", "replace")
        raise UndeterminedError(f"helm {words[0]} did not end within {_ANSWER_SECONDS:g} s")

    async def ask_json(self, *words: str) -> Any:
        """Runs a command that changes nothing and prints JSON.

        Raises:
            HelmError: it failed.
            UndeterminedError: what it printed cannot be read.
        """
        text = await self.ask(*words, "--output", "json")
        try:
            return json.loads(text)
        except ValueError:
            raise UndeterminedError(
                f"helm {words[0]} printed something that is no JSON: {one_line(text)!r}"
            ) from None


def what_it_said(stderr: bytes) -> str:
    """The reason in what Helm wrote on stderr, in one line."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("Error: "):
            return one_line(" ".join(lines[number:]).removeprefix("Error: "), _LONGEST)
    return one_line(" ".join(lines) or "it said nothing", _LONGEST)


def find(cluster: Cluster, environ: Mapping[str, str]) -> Helm:
    """Finds Helm 4 on PATH.

    Args:
        cluster: which cluster it will be used for.
        environ: the variables of the process.

    Raises:
        UndeterminedError: it is not there, or another version.
    """
    program = shutil.which("helm", path=environ.get("PATH", os.defpath))
    if program is None:
        raise UndeterminedError(f"helm is not on PATH; install Helm {_MAJOR}")
    kept = {name: value for name, value in environ.items() if not _OURS.match(name)}
    version = _version(program, kept)
    if not re.match(rf"v?{_MAJOR}(\.|\Z)", version):
        raise UndeterminedError(
            f"{program} is {version or 'no Helm'}; kars upgrade needs Helm {_MAJOR}"
        )
    return Helm(program, cluster, kept)


def _version(program: str, environ: Mapping[str, str]) -> str:
    """What Helm says of itself, such as `v4.3.2`; empty if it says nothing."""
    command: Sequence[str] = (program, "version", "--template", "{{.Version}}")
    try:
        done = subprocess.run(  # noqa: S603 (the user's helm)
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(environ),
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return one_line(done.stdout.decode("utf-8", "replace")) if done.returncode == 0 else ""
