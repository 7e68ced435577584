"""Looking for a release: index and release notes on real sockets."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from index_kit import NO_PROXY, Index, Raw, serve_index, serve_raw

from kars_router._version import __version__
from kars_router.update import findings
from kars_router.update.findings import Findings
from kars_router.update.installation import Installation, Manner
from kars_router.update.look import look

OLD, NEW, NEWEST = "0.0.1", "98.0", "99.0"


def wheel(version: str) -> str:
    return f"kars_router-{version}-py3-none-any.whl"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_PROXY.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def index() -> Iterator[Index]:
    with serve_index() as running:
        yield running


@pytest.fixture
def installation(tmp_path: Path, index: Index) -> Installation:
    urls = (f"Repository, {index.repository}",)
    return Installation(Manner.PIP, tmp_path, sys.executable, urls=urls)


def every(installation: Installation | None, index: Index, **variables: str) -> list[Findings]:
    environ = {"HOME": "/nowhere", **index.environ(**variables)}
    return list(look(installation, environ, seconds=10, every=True))


def problem(installation: Installation, index: Index, **variables: str) -> str:
    [found] = every(installation, index, **variables)
    assert (found.newest, found.newer) == ("", ())
    return found.problem


def notes(index: Index, **lines: str) -> None:
    index.releases = [
        {"tag_name": f"v{version.removeprefix('r').replace('_', '.')}", "name": None, "body": line}
        for version, line in lines.items()
    ]


def test_newer_releases_and_what_is_new_in_them(installation: Installation, index: Index) -> None:
    index.add(*map(wheel, (OLD, __version__, NEW, NEWEST)))
    notes(index, r99_0="- Faster starts.", r98_0="- Fewer surprises.", r0_0_1="- The first one.")
    first, second = every(installation, index)
    assert first == Findings(newer=(NEW, NEWEST), newest=NEWEST, page=index.repository)
    assert second == evolve(
        first, summaries={NEWEST: "Faster starts.", NEW: "Fewer surprises."}, notes_problem=""
    )
    assert second.summary == "Faster starts."
    assert index.pages() == [
        "/simple/kars-router/",
        "/api/v3/repos/somebody/kars-router/releases?per_page=50",
    ]


def test_only_the_newest_is_asked_about_where_that_is_enough(
    installation: Installation, index: Index
) -> None:
    index.add(wheel(NEW), wheel(NEWEST))
    notes(index, r99_0="- Faster starts.", r98_0="- Fewer surprises.")
    [_, found] = look(installation, index.environ(), seconds=10, every=False)
    assert found.summaries == {NEWEST: "Faster starts."}
    assert index.pages()[-1].endswith("/releases/tags/v99.0")


def test_this_is_the_newest(installation: Installation, index: Index) -> None:
    index.add(wheel(OLD), wheel(__version__))
    [found] = every(installation, index)
    assert (found.newest, found.newer, found.problem) == (__version__, (), "")


def test_an_index_that_has_only_older_ones(installation: Installation, index: Index) -> None:
    index.add(wheel(OLD))
    [found] = every(installation, index)
    assert (found.newest, found.newer, found.problem) == (OLD, (), "")


def test_an_index_without_json(installation: Installation, index: Index) -> None:
    index.speaks_json = False
    index.add(wheel(NEW))
    assert every(installation, index)[0].newer == (NEW,)


def test_a_package_that_does_not_say_where_its_notes_are(
    installation: Installation, index: Index
) -> None:
    index.add(wheel(NEW))
    [found] = every(evolve(installation, urls=()), index)
    assert found.page == ""
    assert found.notes_problem == "the package does not name a repository with its notes"


def test_notes_that_are_not_there(installation: Installation, index: Index) -> None:
    index.add(wheel(NEW))
    [_, found] = every(installation, index)
    assert found.newest == NEW
    assert found.notes_problem == "the place of the release notes answered with status 404"
    notes(index, r98_0="")
    [_, found] = every(installation, index)
    assert found.notes_problem == "nothing is written about these releases"


def test_a_login_is_shown_to_the_index_alone(installation: Installation, index: Index) -> None:
    index.login = "me:secret"
    index.add(wheel(NEW))
    url = index.simple.replace("//", "//me:secret@")
    found = every(installation, index, PIP_INDEX_URL=url)
    assert found[0].newest == NEW
    assert [each.login for each in index.asked] == ["me:secret", ""]
    said = problem(installation, index, PIP_INDEX_URL=url.replace("secret", "wrong"))
    assert said == f"the index at {index.url.removeprefix('http://')} answered with status 401"


# What cannot be found out


def test_a_copy_that_was_not_installed(index: Index) -> None:
    assert "was not installed" in every(None, index)[0].problem


@pytest.mark.parametrize("names", [(), (wheel("99.0rc1"),), ("kars_router-99.0.exe",)])
def test_no_release_is_there(
    names: tuple[str, ...], installation: Installation, index: Index
) -> None:
    index.add(*names)
    said = problem(installation, index)
    assert said.startswith("there is no release of kars-router for Python 3.")
    assert said.endswith(f"at {index.url.removeprefix('http://')}")


def test_settings_that_cannot_be_used(installation: Installation, index: Index) -> None:
    assert problem(installation, index, PIP_NO_INDEX="1") == "pip is set to use no index"


def test_something_else_answers(installation: Installation, index: Index) -> None:
    index.redirects = {"/simple/kars-router/": f"{index.url}/files/x"}
    index.add("x")
    assert problem(installation, index).endswith("answered with something that is no project page")


# Several indexes


def test_indexes_of_pip_add_up(installation: Installation, index: Index) -> None:
    index.add(wheel(OLD))
    with serve_index(wheel(NEW)) as other, serve_index() as without:
        extra = f"{other.simple} {without.simple}"
        found = every(installation, index, PIP_EXTRA_INDEX_URL=extra)
        assert len(without.asked) == 1
    assert found[0].newest == NEW


def test_the_first_index_of_uv_that_has_the_project_counts(
    installation: Installation, index: Index
) -> None:
    index.add(wheel(NEW))
    by_uv = evolve(installation, manner=Manner.UV, uses_uv=True)
    with serve_index(wheel(OLD)) as first, serve_index() as without:
        variables = {"UV_INDEX": f"{without.simple} {first.simple}"}
        [found] = every(by_uv, index, **variables)
        assert found.newest == OLD
        assert index.asked == []
        first.login = "needed:now"
        assert "status 401" in problem(by_uv, index, **variables)
        assert index.asked == []
        found = every(by_uv, index, UV_INDEX_STRATEGY="unsafe-best-match", **variables)[0]
        assert found.newest == NEW


def test_an_index_that_is_down_leaves_open_whether_this_is_the_newest(
    installation: Installation, index: Index
) -> None:
    index.add(wheel(__version__))
    with serve_raw(lambda raw: raw.request()) as down:
        said = problem(installation, index, PIP_EXTRA_INDEX_URL=down)
        assert said.startswith(f"the index at {down.removeprefix('http://')} ")
        index.add(wheel(NEW))
        assert every(installation, index, PIP_EXTRA_INDEX_URL=down)[0].newest == NEW


def test_slow_release_notes_do_not_hold_up_what_is_known(
    installation: Installation, index: Index
) -> None:
    def drip(raw: Raw) -> None:
        raw.request()
        raw.send("HTTP/1.1 200 OK")
        raw.drip(b" ", 0.05)

    index.add(wheel(NEW))
    with serve_raw(drip) as slow:
        elsewhere = evolve(installation, urls=(f"Repository, {slow}/somebody/kars-router",))
        began = time.monotonic()
        found = look(elsewhere, index.environ(), seconds=0.8, every=False)
        assert next(found).newest == NEW
        assert next(found).notes_problem == "the place of the release notes did not answer in time"
        assert time.monotonic() - began < 5


# Handing over


def test_findings_survive_being_handed_over() -> None:
    found = Findings(
        newer=(NEW, NEWEST),
        newest=NEWEST,
        page="https://x.test/",
        summaries={NEWEST: "Faster."},
        notes_problem="x",
    )
    earlier = findings.dump(Findings(problem="earlier"))
    assert findings.load(earlier + findings.dump(found)) == found
    assert findings.load(findings.dump(found) + b'{"newer": [') == found


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"Traceback",
        b"Traceback\n",
        b"{}\n",
        b"\xff\n",
        findings.dump(Findings(newest="1.0\x1b[31m")),
        findings.dump(Findings(newest="--yes")),
        findings.dump(Findings(newer=("1.0/..",), newest="1.0/..")),
        findings.dump(Findings(newer=("1.0",), newest="2.0")),
        findings.dump(Findings(summaries={"x": "y"})),
    ],
)
def test_anything_else_is_not_believed(output: bytes) -> None:
    assert findings.load(output) is None


def test_text_is_made_harmless_once_more() -> None:
    sent = Findings(newest="1.0", problem="a\x1bb", summaries={"1.0": "c\x07d" * 100})
    found = findings.load(findings.dump(sent))
    assert found is not None
    assert found.problem == "ab"
    assert len(found.summary) == 100
