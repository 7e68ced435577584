"""The line about a newer release that a command may end with, and the check behind it.

Owns when there is none. Nothing here asks a network or waits for anything; what a check finds is
told by a later command. Imported by commands on a terminal, so it imports next to nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Final

import click

from kars_router._version import __version__
from kars_router.update import state
from kars_router.update.state import Seen
from kars_router.update.versions import is_newer

# `CI` is what nearly all set; the others belong to those that do not.
_CI: Final = ("CI", "BUILD_NUMBER", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD")
_NO: Final = frozenset({"", "0", "false", "no", "off"})


def after_command(environ: Mapping[str, str]) -> None:
    """Tells of a newer release if there is one to tell of, and starts a check if it is time.

    At most one of each a day, and both only if that could be noted down: whoever cannot remember
    having said something had better not say it.

    Args:
        environ: the variables.

    Raises:
        OSError: something could not be read, noted, or started.
    """
    if is_silent(environ):
        return
    place = state.directory(environ)
    now = time.time()
    seen = state.read(place, now)
    if not (seen.wants_check(now) or _has_news(seen, now)):
        return
    with state.hold(place, wait=False):
        seen = state.read(place, now)  # another command may have been quicker
        news, due = _has_news(seen, now), seen.wants_check(now)
        if not (news or due):
            return
        noted = seen._replace(
            notified_at=int(now) if news else seen.notified_at,
            attempted_at=int(now) if due else seen.attempted_at,
        )
        state.write(place, noted)
    if news:
        click.echo(line(seen), err=True)
    if due:
        from kars_router.update.background import leave_alone

        leave_alone()


def is_silent(environ: Mapping[str, str]) -> bool:
    """Whether the surroundings rule out a notice and a check.

    Args:
        environ: the variables.
    """
    if environ.get("KARS_NO_UPDATE_CHECK", "").lower() not in _NO:
        return True
    # In a pod, releases come with the image, and there is no way out to an index.
    if "KUBERNETES_SERVICE_HOST" in environ:
        return True
    return any(environ.get(name, "").lower() not in _NO for name in _CI)


def line(seen: Seen) -> str:
    """What a user is told."""
    said = f"kars {seen.latest} is out, this is {__version__}; 'kars update' installs it"
    return f"{said}. New: {seen.summary}" if seen.summary else said


def _has_news(seen: Seen, now: float) -> bool:
    return (
        bool(seen.latest)
        and seen.latest != __version__
        and seen.prefix == sys.prefix
        and seen.may_notify(now)
        and is_newer(seen.latest, __version__)
    )
