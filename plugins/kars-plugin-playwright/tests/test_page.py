"""The decision on results of real servers, and on results that no server should send.

`recorded/` holds what `@playwright/mcp` answered with Debian's chromium: before each call the
seconds of idleness, behind each answer what there is to say about it. Addresses and file names
were evened out, nothing else. 0.0.83 ran with `--idle-timeout 4000` where a name begins with idle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_plugin_playwright import page as module
from kars_plugin_playwright.page import CLOSED, RESET, Memory, View, read_view

RECORDED = Path(__file__).parent / "recorded"
CLAUSES = {"reset": RESET, "closed": CLOSED, None: None}


def scenarios() -> list[Any]:
    return [
        pytest.param(scenario["steps"], id=f"{file.stem.removeprefix('results-')}: {name}")
        for file in sorted(RECORDED.glob("*.json"))
        for scenario in json.loads(file.read_text(encoding="utf-8"))
        for name in [scenario["name"]]
    ]


def judge(
    memory: Memory,
    tool: str,
    arguments: dict[str, Any],
    answer: dict[str, Any],
    *,
    now: float = 100.0,
) -> tuple[Memory, str | None]:
    return module.judge(memory, tool, arguments, answer, now=now)


def result(text: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], **more}


def page(url: str) -> dict[str, Any]:
    return result(f"### Page\n- Page URL: {url}\n### Snapshot\n```yaml\n\n```")


BLANK = page("about:blank")
SEEN = Memory("http://127.0.0.1:8000/one")


@pytest.mark.parametrize("steps", scenarios())
def test_what_was_recorded_is_judged_as_it_was(steps: list[dict[str, Any]]) -> None:
    memory, now = Memory(), 0.0
    said = []
    for step in steps:
        now += step["after"]
        memory, clause = judge(memory, step["tool"], step["arguments"], step["result"], now=now)
        said.append(clause)
    assert said == [CLAUSES[step["lost"]] for step in steps]


def test_the_recordings_hold_losses_and_their_absence() -> None:
    steps = [step for case in scenarios() for step in case.values[0]]
    assert {step["lost"] for step in steps} == {"reset", "closed", None}


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("browser_snapshot", {}),
        ("browser_reload", {}),
        ("browser_tabs", {"action": "list"}),
        ("browser_click", {"element": "the page", "target": "body"}),
        ("browser_evaluate", {"function": "() => document.title"}),
        ("browser_fill_form", {"fields": []}),
        ("browser_press_key", {"key": "a"}),
    ],
)
def test_an_empty_page_that_the_call_does_not_explain_is_a_loss(
    tool: str, arguments: dict[str, Any]
) -> None:
    answer = (
        BLANK if tool != "browser_tabs" else result("### Result\n- 0: (current) [](about:blank)")
    )
    assert judge(SEEN, tool, arguments, answer) == (Memory(), RESET)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("browser_navigate", {"url": "about:blank"}),
        ("browser_navigate_back", {}),
        ("browser_navigate_forward", {}),
        ("browser_click", {"element": "a link", "ref": "e6"}),
        ("browser_click", {"element": "a link", "target": "#leave"}),
        ("browser_drag", {"startRef": "e1", "endRef": "e2"}),
        ("browser_fill_form", {"fields": [{"name": "a", "ref": "e1"}]}),
        ("browser_handle_dialog", {"accept": True}),
        ("browser_evaluate", {"function": "() => history.back()"}),
        ("browser_run_code", {"code": "async page => page.goto('about:blank')"}),
    ],
)
def test_an_empty_page_that_the_call_explains_is_none(tool: str, arguments: dict[str, Any]) -> None:
    assert judge(SEEN, tool, arguments, BLANK) == (Memory(), None)


def test_a_failed_call_explains_nothing() -> None:
    answer = result("### Error\nError: no\n### Page\n- Page URL: about:blank", isError=True)
    arguments = {"url": "http://127.0.0.1:8000/two"}
    assert judge(SEEN, "browser_navigate", arguments, answer) == (Memory(), RESET)


def test_a_page_that_is_left_late_is_no_loss() -> None:
    code = {"function": "() => { location.href = 'about:blank' }"}
    none_yet = result("### Result\nundefined")
    memory, _ = judge(SEEN, "browser_evaluate", code, none_yet, now=100.0)
    assert judge(memory, "browser_snapshot", {}, BLANK, now=102.0) == (Memory(), None)
    assert judge(memory, "browser_snapshot", {}, BLANK, now=104.0) == (Memory(), RESET)
    old_page = page(SEEN.page)
    memory, _ = judge(SEEN, "browser_evaluate", code, old_page, now=100.0)
    assert judge(memory, "browser_snapshot", {}, BLANK, now=102.0) == (Memory(), None)
    memory, _ = judge(memory, "browser_snapshot", {}, old_page, now=101.0)
    assert judge(memory, "browser_snapshot", {}, BLANK, now=102.0) == (Memory(), RESET)


def test_a_call_that_shows_no_page_does_not_end_the_wait_for_a_late_one() -> None:
    code = {"function": "() => { location.href = 'about:blank' }"}
    memory, _ = judge(SEEN, "browser_evaluate", code, result("### Result\nundefined"), now=100.0)
    memory, _ = judge(memory, "browser_console_messages", {}, result("### Result\nx"), now=101.0)
    assert judge(memory, "browser_snapshot", {}, BLANK, now=102.0) == (Memory(), None)


def test_a_failed_script_explains_nothing_later() -> None:
    code = {"function": "() => { location.href = 'about:blank' }"}
    memory, _ = judge(SEEN, "browser_evaluate", code, result("### Error\nno", isError=True))
    assert judge(memory, "browser_snapshot", {}, BLANK) == (Memory(), RESET)


def test_a_loss_is_told_once() -> None:
    memory, clause = judge(SEEN, "browser_snapshot", {}, BLANK)
    assert clause == RESET
    assert judge(memory, "browser_snapshot", {}, BLANK) == (Memory(), None)


def test_closing_fails_without_changing_what_is_known() -> None:
    answer = result("### Error\nError: no", isError=True)
    assert judge(SEEN, "browser_close", {}, answer) == (SEEN, None)


def test_a_missing_tab_is_a_loss_only_if_it_was_the_first_and_a_page_was_open() -> None:
    first = result("### Error\nError: Tab 0 not found", isError=True)
    tenth = result("### Error\nError: Tab 10 not found", isError=True)
    select = {"action": "select", "index": 0}
    assert judge(SEEN, "browser_tabs", select, first) == (Memory(), CLOSED)
    assert judge(SEEN, "browser_tabs", {"action": "select", "index": 10}, tenth) == (SEEN, None)
    assert judge(Memory(), "browser_tabs", select, first) == (Memory(), None)


def test_text_of_a_page_that_reads_like_an_error_is_none() -> None:
    answer = result("### Result\nNo open pages available.")
    assert judge(SEEN, "browser_console_messages", {}, answer) == (SEEN, None)


def test_going_back_from_a_second_tab_does_not_know_what_is_behind() -> None:
    memory, _ = judge(SEEN, "browser_navigate", {}, page("http://127.0.0.1:8000/two"))
    assert memory.behind
    other = result(
        "### Result\n- 0: [](about:blank)\n- 1: (current) [x](http://127.0.0.1:8000/two)"
    )
    memory, _ = judge(memory, "browser_tabs", {"action": "select", "index": 1}, other)
    assert judge(memory, "browser_navigate_back", {}, BLANK) == (Memory(), None)


def test_what_is_behind_stays_known_while_the_page_stays() -> None:
    two = page("http://127.0.0.1:8000/two")
    memory, _ = judge(SEEN, "browser_navigate", {}, two)
    memory, _ = judge(memory, "browser_snapshot", {}, two)
    assert judge(memory, "browser_navigate_back", {}, BLANK) == (Memory(), RESET)


def test_going_to_the_same_page_puts_nothing_behind_it() -> None:
    memory, _ = judge(SEEN, "browser_navigate", {}, page(SEEN.page))
    assert judge(memory, "browser_navigate_back", {}, BLANK) == (Memory(), None)


def test_of_several_pages_the_current_one_is_remembered() -> None:
    listed = result("### Result\n- 0: [a](http://a/)\n- 1: (current) [b](http://b/)")
    assert judge(Memory(), "browser_tabs", {"action": "list"}, listed) == (
        Memory("http://b/"),
        None,
    )


def test_a_click_to_another_page_leaves_what_is_behind_unknown() -> None:
    memory, _ = judge(SEEN, "browser_navigate", {}, page("http://127.0.0.1:8000/two"))
    memory, _ = judge(memory, "browser_click", {"ref": "e1"}, page("http://127.0.0.1:8000/one"))
    assert judge(memory, "browser_navigate_back", {}, BLANK, now=200.0) == (Memory(), None)


@pytest.mark.parametrize(
    ("tool", "text", "view"),
    [
        ("browser_snapshot", "### Page\n- Page URL: http://a/\n- Page Title: x", View("http://a/", ("http://a/",))),
        ("browser_tabs", "### Result\nNo open tabs. Navigate to a URL.", View("", ())),
        ("browser_tabs", "### Result\nsomething else", None),
        (
            "browser_tabs",
            "### Result\n- 0: [](about:blank)\n- 1: (current) [a](b) [c]](http://a/(x)) [crashed]",
            View("http://a/(x)", ("about:blank", "http://a/(x)")),
        ),
        (
            "browser_snapshot",
            "### Open tabs\n- 0: (current) [](about:blank)\n- 1: [a](a:b)\n### Page\n- Page URL: x",
            View("about:blank", ("about:blank", "a:b")),
        ),
        ("browser_console_messages", "### Result\nx\n### Page\n- Page URL: about:blank", None),
        ("browser_click", "### Error\nError: Ref e3 not found", None),
        ("browser_snapshot", "", None),
    ],
)  # fmt: skip
def test_a_view_is_read_from_the_text(tool: str, text: str, view: View | None) -> None:
    assert read_view(tool, text) == view


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
blocks = st.fixed_dictionaries({"type": json_values, "text": st.text() | json_values})


@given(
    tool=st.sampled_from(["browser_snapshot", "browser_tabs", "browser_close", "browser_evaluate"]),
    arguments=st.dictionaries(st.text(), json_values, max_size=3),
    answer=st.fixed_dictionaries(
        {},
        optional={"content": json_values | st.lists(blocks | json_values), "isError": json_values},
    ),
)
def test_no_shape_of_a_result_breaks_the_judge(
    tool: str, arguments: dict[str, Any], answer: dict[str, Any]
) -> None:
    memory, clause = judge(SEEN, tool, arguments, answer)
    assert isinstance(memory, Memory)
    assert clause in CLAUSES.values()


def test_a_huge_hostile_title_is_read_in_linear_time() -> None:
    title = "](" * 100_000
    text = f"### Result\n- 0: (current) [{title}](about:blank)"
    assert read_view("browser_tabs", text) == View("about:blank", ("about:blank",))
