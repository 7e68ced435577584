"""Looks for a newer release: asks the indexes, then the release notes.

Owns the order of the questions, and what becomes of the answers when some are missing. Whoever
calls it may be ended at any moment, so what is known is handed over as soon as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final

from attrs import evolve
from packaging.version import Version

from kars_router._version import __version__
from kars_router.errors import UndeterminedError
from kars_router.update import DISTRIBUTION, changelog, simple_api
from kars_router.update.changelog import Place
from kars_router.update.fetch import Client, FetchError
from kars_router.update.findings import Findings
from kars_router.update.indexes import settings_of
from kars_router.update.installation import Installation
from kars_router.update.settings import Index, Settings, Wire
from kars_router.update.simple_api import PageError
from kars_router.update.versions import is_newer

_LONGEST_PAGE: Final = 4 * 1024 * 1024
_LONGEST_NOTES: Final = 2 * 1024 * 1024
_NO_PLACE: Final = "the package does not name a repository with its notes"
_PYTHON: Final = ".".join(map(str, sys.version_info[:3]))


def look(
    installation: Installation | None,
    environ: Mapping[str, str],
    *,
    seconds: float,
    every: bool,
) -> Iterator[Findings]:
    """Looks for a newer release.

    Args:
        installation: what is to be updated; None if it was not installed at all.
        environ: the variables.
        seconds: how long this may take, as far as it is up to us.
        every: whether a line about each newer release is wanted, not only the newest.

    Yields:
        What is known, once the indexes have answered and again, if there is more to say, once the
        release notes have.
    """
    deadline = time.monotonic() + seconds
    if installation is None:
        yield Findings(problem="this copy was not installed as a package, so it has no releases")
        return
    try:
        offered = _offered(installation, environ, deadline)
    except UndeterminedError as error:
        yield Findings(problem=str(error))
        return
    notes = changelog.place(installation.urls)
    found = Findings(
        newer=tuple(each for each in offered if is_newer(each, __version__)),
        newest=offered[-1],
        page=notes.page,
        notes_problem="" if notes.api else _NO_PLACE,
    )
    yield found
    if found.newer and notes.api:
        yield _with_notes(found, notes, deadline, every=every)


def _offered(
    installation: Installation, environ: Mapping[str, str], deadline: float
) -> tuple[str, ...]:
    """The releases that there are, oldest first; at least one.

    Raises:
        UndeterminedError: not known.
    """
    left = deadline - time.monotonic()
    settings = settings_of(installation, environ, left / 2)
    offered: set[str] = set()
    problems = []
    for index, answer in _ask(settings, deadline):
        if isinstance(answer, str):
            problems.append(f"the index at {index.host} {answer}")
        else:
            offered.update(answer)
    ordered = tuple(sorted(offered, key=Version))
    # A newer one is news, whatever the other indexes have. That there is none, all have to say.
    if problems and not (ordered and is_newer(ordered[-1], __version__)):
        raise UndeterminedError("; ".join(problems))
    if not ordered:
        asked = " and ".join(index.host for index in settings.indexes)
        raise UndeterminedError(
            f"there is no release of {DISTRIBUTION} for Python {_PYTHON} at {asked}"
        )
    return ordered


def _ask(settings: Settings, deadline: float) -> Iterator[tuple[Index, tuple[str, ...] | str]]:
    """What each index offers, or a clause that says why that is not known."""
    client = Client(settings.wire, deadline=deadline, longest=_LONGEST_PAGE)
    for index in settings.indexes:
        url = simple_api.page_url(index.url, DISTRIBUTION)
        try:
            answer = client.get(url, accept=simple_api.ACCEPT, login=index.login)
            found = simple_api.releases(answer.content_type, answer.body, DISTRIBUTION, _PYTHON)
        except FetchError as error:
            if error.status == 404:  # an index among several that does not have it
                continue
            yield index, str(error)
        except PageError as error:
            yield index, str(error)
        else:
            yield index, found
        if settings.first_only:
            return


def _with_notes(found: Findings, notes: Place, deadline: float, *, every: bool) -> Findings:
    several = every and len(found.newer) > 1
    url = notes.several() if several else notes.one(found.newest)
    client = Client(Wire(), deadline=deadline, longest=_LONGEST_NOTES)
    try:
        answer = client.get(url, accept=changelog.ACCEPT)
    except FetchError as error:
        return evolve(found, notes_problem=f"the place of the release notes {error}")
    lines = changelog.summaries(answer.body)
    summaries = {version: lines[version] for version in found.newer if lines.get(version)}
    problem = "" if summaries else "nothing is written about these releases"
    return evolve(found, summaries=summaries, notes_problem=problem)


def notes_between(
    installation: Installation | None, since: str, until: str, *, seconds: float
) -> Findings:
    """Looks for the lines about releases that are known already.

    Args:
        installation: whose notes they are; None if it was not installed at all.
        since: the version after which it begins.
        until: the last one.
        seconds: how long this may take, as far as it is up to us.
    """
    if installation is None:
        return Findings(notes_problem="this copy was not installed as a package")
    notes = changelog.place(installation.urls)
    found = Findings(
        newer=(until,),
        newest=until,
        page=notes.page,
        notes_problem="" if notes.api else _NO_PLACE,
    )
    if not notes.api:
        return found
    client = Client(Wire(), deadline=time.monotonic() + seconds, longest=_LONGEST_NOTES)
    try:
        answer = client.get(notes.several(), accept=changelog.ACCEPT)
    except FetchError as error:
        return evolve(found, notes_problem=f"the place of the release notes {error}")
    lines = {
        version: line
        for version, line in changelog.summaries(answer.body).items()
        if line and is_newer(version, since) and not is_newer(version, until)
    }
    newer = sorted({*lines, until}, key=Version)
    problem = "" if lines else "nothing is written about these releases"
    return evolve(found, newer=tuple(newer), summaries=lines, notes_problem=problem)
