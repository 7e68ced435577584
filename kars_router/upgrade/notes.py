"""What is new between two releases, from the release notes of our own package.

Asked in a process of its own, as all questions to places beyond the cluster are.
"""

from __future__ import annotations

from typing import Final

from kars_router.update.ask import ask_notes
from kars_router.update.findings import Findings
from kars_router.update.versions import is_version

_LIMIT: Final = 5.0  # seconds; nothing depends on it


def notes_between(before: str, after: str) -> Findings:
    """The summaries of the releases after one and up to another.

    Args:
        before: the version that is installed.
        after: the version that is to be.
    """
    if not (is_version(before) and is_version(after)):
        return Findings(notes_problem="the charts do not say which releases they install")
    return ask_notes(before, after, _LIMIT)
