"""Runs the installer, then the new release once.

The package that this process runs from is replaced meanwhile. So everything that is needed
afterwards has to be imported before: a module that is loaded later would be one of the new release.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from kars_router.update.installation import Installation, Manner
from kars_router.update.text import one_line

_START_LIMIT: Final = 30.0  # seconds for `kars --version`, which takes a tenth of one


class InstallError(Exception):
    """The release is not there, or does not run; the message is a sentence about it."""


def install(installation: Installation, version: str) -> None:
    """Installs a release, and sees whether it runs.

    What the installer says goes to our stderr as it comes.

    Args:
        installation: one that is offered.
        version: canonical.

    Raises:
        InstallError: it failed.
        KeyboardInterrupt: the user interrupted it; the installer has ended by then.
    """
    command = installation.command(version)
    name = Path(command[0]).name if installation.manner is not Manner.PIP else "pip"
    try:
        status = _run(command, installation)
    except OSError as error:
        raise InstallError(f"{name} cannot be started: {error.strerror or error}") from None
    if status:
        raise InstallError(f"{name} failed with exit status {status}; what it said is above")
    runs = _version_that_runs(installation)
    if runs != version:
        raise InstallError(f"{name} reported success, but `kars --version` says {runs}")


def _run(command: tuple[str, ...], installation: Installation) -> int:
    """Runs the installer to its end: cut short, it might leave half of a package behind."""
    interrupted = False
    with subprocess.Popen(  # noqa: S603 (shown to the user before)
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        # uv goes by the project that it is started in; it should be the one that we looked at.
        cwd=installation.prefix if installation.manner is Manner.UV else None,
    ) as process:
        while process.poll() is None:
            # The terminal has told the installer as well, and it ends in its own way.
            try:
                process.wait()
            except KeyboardInterrupt:
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return process.returncode


def _version_that_runs(installation: Installation) -> str:
    """What the command that is now installed says of itself, in a process of its own."""
    script = Path(installation.python).with_name("kars")
    program = [str(script)] if script.exists() else [installation.python, "-P", "-m", "kars_router"]
    try:
        done = subprocess.run(  # noqa: S603 (what was just installed)
            [*program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nothing ({type(error).__name__})"
    said = done.stdout if done.returncode == 0 else done.stderr
    lines = said.decode("utf-8", "replace").splitlines() or ["nothing"]
    with contextlib.suppress(ValueError):
        name, version = lines[-1].split()
        if name == "kars" and done.returncode == 0:
            return one_line(version)
    return f"{one_line(lines[-1])!r}"
