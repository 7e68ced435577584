"""Installs the peers, as far as they can be had: `python -m bench.peers.install [NAME...]`.

Each gets an environment of its own, because they need different versions of the same things. What
cannot be installed is named, and left out of the measurements; that is no error. What takes a
compiler, and minutes, is only installed if it is named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.peers import SOURCES, Source, directory

_SECONDS = 1800.0
_NAMED_ONLY = ("cargo",)


def install(source: Source, where: Path) -> str:
    """Installs one, unless it is there.

    Returns:
        "" if it is there, else a sentence that says why it is not.
    """
    if source.installed(where):
        return ""
    place = source.place(where)
    shutil.rmtree(place, ignore_errors=True)
    if source.installer == "pip":
        venv.create(place, with_pip=True)
        command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        command += ["--disable-pip-version-check", *source.requirement.split()]
    else:
        tool = shutil.which(source.installer)
        if tool is None:
            return f"{source.installer} is not installed"
        if source.installer == "npm":
            command = [tool, "install", "--no-audit", "--no-fund", "--loglevel=error"]
            command += ["--no-save", "--prefix", str(place), source.requirement]
        else:
            command = [tool, "install", "--quiet", "--root", str(place)]
            command += [source.requirement]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{source.installer} took longer than {_SECONDS:g} s"
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "?").splitlines()
        return f"{source.installer} failed: {said[-1]:.300}"
    (place / "installed").write_text(source.requirement)
    return ""


def main(names: list[str]) -> int:
    """Installs those that are named, or those that take no compiler."""
    where = directory()
    where.mkdir(parents=True, exist_ok=True)
    wanted = [
        source
        for source in SOURCES
        if (source.name in names if names else source.installer not in _NAMED_ONLY)
    ]
    for source in wanted:
        reason = install(source, where)
        print(f"{source.requirement}: {reason or 'installed'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
