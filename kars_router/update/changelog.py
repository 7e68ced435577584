"""Release notes: where a package says they are, and what they say in one line.

Pure. The package's own metadata names a repository on a GitHub, the public one or a company's; its
API has the notes of every release. What is written there is text of strangers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, urlsplit

import msgspec
from attrs import frozen

from kars_router.update.text import one_line
from kars_router.update.versions import is_version

ACCEPT: Final = "application/vnd.github+json"
# The labels that PyPA's specification of well-known ones has, best first.
_CHANGELOG: Final = ("changelog", "changes", "whatsnew", "history")
_LABELS: Final = (
    *_CHANGELOG,
    "releasenotes",
    "releases",
    "source",
    "repository",
    "sourcecode",
    "github",
    "homepage",
)
_PUBLIC: Final = frozenset({"github.com", "www.github.com"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Pages of a repository; anything else below two names is no repository's.
_PAGES: Final = frozenset({"", "blob", "releases", "tags", "tree"})
_SHORTEST: Final = 8  # less says nothing: "Fixes", "v0.2.0"


@frozen
class Place:
    """Where the notes are.

    Attributes:
        page: for people; empty if the package names none.
        api: the releases of the repository, in GitHub's API; empty if there is no such.
    """

    page: str = ""
    api: str = ""

    def one(self, version: str) -> str:
        """The API's address of the notes of one release."""
        return f"{self.api}/tags/{quote(f'v{version}', safe='')}"

    def several(self) -> str:
        """The API's address of the notes of the newest releases."""
        return f"{self.api}?per_page=50"


def place(urls: Iterable[str]) -> Place:
    """Finds the notes by the metadata of a package.

    Args:
        urls: the values of `Project-URL`, each `label, URL`.
    """
    labelled: dict[str, str] = {}
    for each in urls:
        label, _, url = each.partition(",")
        key = re.sub(r"[\W_]", "", label.lower())
        if key in _LABELS and _is_plain(url.strip()):
            labelled.setdefault(key, url.strip())
    known = [labelled[label] for label in _LABELS if label in labelled]
    return Place(
        page=known[0] if known else "",
        api=next(filter(None, map(_api, known)), ""),
    )


def _is_plain(url: str) -> bool:
    """Whether a URL leads to a web page and has nothing in it that could deceive."""
    if not url.isprintable() or not url.isascii() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
        )
    except ValueError:
        return False


def _api(url: str) -> str:
    """The API's address of a repository's releases; empty if the URL is no repository's."""
    parts = urlsplit(url)
    owner, name, page = ([*parts.path.strip("/").split("/"), "", "", ""])[:3]
    name = name.removesuffix(".git")
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name) and page in _PAGES):
        return ""
    host = parts.netloc.lower()
    base = "https://api.github.com" if host in _PUBLIC else f"{parts.scheme}://{host}/api/v3"
    return f"{base}/repos/{quote(owner, safe='')}/{quote(name, safe='')}/releases"


class _Release(msgspec.Struct):
    tag_name: str
    name: str | None = None
    body: str | None = None
    draft: bool = False


def summaries(body: bytes) -> Mapping[str, str]:
    """A line about each release, by its version.

    Args:
        body: what the API answered, about one release or several; whatever is wrong with it, there
            is nothing more to say then.
    """
    try:
        found = msgspec.json.decode(body, type=list[_Release] | _Release)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    lines: dict[str, str] = {}
    for each in found if isinstance(found, list) else [found]:
        version = _version_of(each.tag_name)
        if version and not each.draft:
            lines.setdefault(version, summary(version, each.name or "", each.body or ""))
    return lines


def _version_of(tag: str) -> str:
    """The version in a tag such as `v1.2`, `1.2` or `kars-router/v1.2`; empty if there is none."""
    version = re.split(r"[/@]|(?<=[a-z])-", tag[-100:])[-1].removeprefix("v")
    return version if is_version(version) else ""


def summary(version: str, title: str, body: str) -> str:
    """What the notes of a release say, in a line of at most 100 characters.

    That is what the title says beside the version, or else the first line of the text that is
    neither a heading nor decoration. Empty if there is nothing of that kind.
    """
    said = _after_version(version, one_line(title[:1000], 1000))
    if len(said) >= _SHORTEST:
        return one_line(said)
    for line in body[:20_000].splitlines()[:200]:
        text = _without_markup(one_line(line[:1000], 1000))
        if len(text.replace(version, "").strip()) >= _SHORTEST:
            return one_line(text)
    return ""


def _after_version(version: str, title: str) -> str:
    """The part of a title behind the version; all of it if the version is not in it."""
    _, there, after = title.partition(version)
    return _without_markup(after.lstrip(" :,;|-\N{EN DASH}\N{EM DASH})") if there else title)


def _without_markup(line: str) -> str:
    """A line of Markdown as plain text; empty for a heading, a rule, a table or a comment."""
    if re.match(r"#|```|~~~|\||<!--|[-*_=]{3,}$", line):
        return ""
    line = re.sub(r"^(?:[-*+>]|[0-9]{1,3}[.)])\s+", "", line)
    line = re.sub(r"!?\[([^\]\[]{0,300})\](?:\([^()\s]{0,300}\)|\[[^\]\[]{0,100}\])?", r"\1", line)
    line = re.sub(r"</?[A-Za-z][^<>]{0,200}>", "", line)
    return re.sub(r"[`*]+|(?<!\w)_+|_+(?!\w)", "", line).strip()
