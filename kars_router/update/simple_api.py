"""The Simple API of package indexes: what a project's page says about its releases.

Pure. JSON (PEP 691, PEP 700) and, from an index that has no other form, HTML (PEP 503, PEP 592,
PEP 658). A page is judged file by file, as installers do: a release counts if there is a file of
it that is not yanked and that this Python may install.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import msgspec
from attrs import frozen
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import (
    InvalidName,
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from kars_router.update.versions import canonical

JSON: Final = "application/vnd.pypi.simple.v1+json"
ACCEPT: Final = f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LONGEST_NAME: Final = 300


class PageError(ValueError):
    """A page that cannot be understood; the message goes on from the name of the index."""


@frozen
class File:
    """One file of a project, as a page lists it.

    Attributes:
        name: of the file.
        yanked: whether it was withdrawn.
        requires_python: the Pythons it is for, as a specifier; empty for all.
    """

    name: str
    yanked: bool = False
    requires_python: str = ""


def page_url(index: str, project: str) -> str:
    """Where an index has the page of a project.

    Args:
        index: the URL of the index, without query and fragment.
        project: its name, in any spelling.
    """
    return f"{index.rstrip('/')}/{quote(canonicalize_name(project), safe='')}/"


def releases(content_type: str, body: bytes, project: str, python: str) -> tuple[str, ...]:
    """The versions that can be installed, oldest first; no pre-releases.

    Args:
        content_type: of the answer, as the index sent it.
        body: of the answer, decoded of any transfer.
        project: the name of the project.
        python: the version of the Python to install for, such as `3.11.7`.

    Raises:
        PageError: the answer is no page of a project.
    """
    found: set[Version] = set()
    for file in files(content_type, body):
        version = _version_of(file.name, canonicalize_name(project))
        if (
            version is not None
            and not file.yanked
            and not version.is_prerelease
            and canonical(version)
            and _fits(file.requires_python, python)
        ):
            found.add(version)
    return tuple(str(each) for each in sorted(found))


def files(content_type: str, body: bytes) -> Iterable[File]:
    """The files that a page lists.

    Raises:
        PageError: it is no page of a project.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.endswith("json"):
        return _json_files(body)
    if kind.endswith("html"):
        return _html_files(body)
    raise PageError("answered with something that is no project page")


def _version_of(name: str, project: str) -> Version | None:
    """The version in the name of a file of the project; None if it is another kind of file."""
    if len(name) > _LONGEST_NAME:
        return None
    try:
        if name.endswith(".whl"):
            whose, version, _, _ = parse_wheel_filename(name)
        else:
            whose, version = parse_sdist_filename(name)
    # The last one: more digits than Python converts.
    except (InvalidName, InvalidSdistFilename, InvalidWheelFilename, ValueError):
        return None
    return version if whose == project else None


def _fits(requires: str, python: str) -> bool:
    try:
        return not requires or SpecifierSet(requires).contains(python, prereleases=True)
    except (InvalidSpecifier, ValueError):
        return False  # what cannot be judged is not offered


class _Meta(msgspec.Struct):
    api_version: str = msgspec.field(name="api-version", default="1.0")


class _File(msgspec.Struct):
    filename: str
    yanked: bool | str | None = False
    requires_python: str | None = msgspec.field(name="requires-python", default=None)


class _Page(msgspec.Struct):
    files: list[_File]
    meta: _Meta


def _json_files(body: bytes) -> Iterator[File]:
    try:
        page = msgspec.json.decode(body, type=_Page)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise PageError("answered with JSON that is no project page") from None
    if page.meta.api_version.partition(".")[0] != "1":
        raise PageError("speaks a later version of the Simple API than this release knows")
    return (
        File(each.filename, bool(each.yanked), each.requires_python or "") for each in page.files
    )


class _Links(HTMLParser):
    """Collects the links of a page, with what their attributes say of the files."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[File] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            return
        given = dict(attrs)
        try:
            path = urlsplit(given.get("href") or "").path
        except ValueError:
            return
        name = unquote(path.rpartition("/")[2])
        # The attribute may stand there without a value.
        self.files.append(
            File(name, "data-yanked" in given, given.get("data-requires-python") or "")
        )


def _html_files(body: bytes) -> list[File]:
    links = _Links()
    try:
        links.feed(body.decode())
        links.close()
    except (UnicodeDecodeError, AssertionError):  # the parser asserts what a page should be like
        raise PageError("answered with HTML that is no project page") from None
    return links.files
