"""Reads what a Playwright MCP result says about the browser, and judges whether a page was lost.

Owns the formats of those results, measured on `@playwright/mcp` 0.0.70 and 0.0.83. Pure: must not
know sessions, hooks or the router.

The server closes an idle browser without ending the MCP session. The next call starts a new one,
and its result looks like any other, except that the page is `about:blank`. The same address is
also where every browser begins, and agents and pages go there on purpose, so an empty page counts
as a loss only when a real one was open before and nothing in the call explains the change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve, frozen

RESET: Final = (
    "the browser's page was reset to about:blank: what it showed and what was typed into it are "
    "gone, other tabs and log-ins may be too"
)
CLOSED: Final = (
    "the browser was closed and its page is gone: what was typed into it, other tabs and log-ins "
    "may be too"
)

_BLANK: Final = "about:blank"
_SECTION: Final = re.compile(r"^### (.+)$", re.MULTILINE)
_PAGE_URL: Final = re.compile(r"^- Page URL: (.*)$", re.MULTILINE)
_TAB: Final = re.compile(r"- \d+:(?P<current> \(current\))? \[")
_NO_TABS: Final = "No open tabs."

# Tools whose `Result` section is the server's own words or JSON. In any other tool's it may be
# text of the page, such as console messages, which can imitate the sections that follow it.
_TRUSTED_RESULTS: Final = frozenset(
    {
        "browser_evaluate",
        "browser_run_code",
        "browser_run_code_unsafe",
        "browser_tabs",
        "browser_take_screenshot",
        "browser_wait_for",
    }
)

# What the server answers when a tool needs a tab and there is none, or not the first one.
_NO_PAGE_ERRORS: Final = re.compile(r"\b(?:No open pages available|Tab (?:0|undefined) not found)")

# Going there by name or through the history (going back has a rule of its own), and tools that
# fail unless the page that raised the dialog is still there.
_MAY_GO_BLANK: Final = frozenset(
    {
        "browser_file_upload",
        "browser_handle_dialog",
        "browser_navigate",
        "browser_navigate_forward",
    }
)
_ELEMENT_ARGUMENTS: Final = ("ref", "target", "startRef", "startTarget")
# Elements that even an empty document has.
_ALWAYS_THERE: Final = frozenset({"", "*", ":root", "body", "head", "html"})
# Ways for a script to leave or close its page.
_LEAVES: Final = re.compile(
    r"about:|location|history|goto|goback|goforward|open\(|close|click|press|submit|document\.write"
    r"|setcontent",
    re.IGNORECASE,
)
# How long after such a call the empty page may come: answers do not wait for it (seen with
# 0.0.83: the answer to a script that leaves came first). No idle timeout is that short.
_LATE: Final = 3.0


@frozen
class View:
    """The open tabs as a result shows them.

    Attributes:
        current: address of the current tab, "" if there is none.
        tabs: addresses of all tabs, the current one included.
    """

    current: str
    tabs: tuple[str, ...]

    @property
    def real(self) -> tuple[str, ...]:
        """The tabs that show anything."""
        return tuple(url for url in self.tabs if url not in ("", _BLANK))


@frozen
class Memory:
    """What the agent may expect of the browser after its calls so far.

    Attributes:
        page: address of the real page that was seen last, "" if none is expected to be open.
        behind: whether the page before it in the history is known to be a real one too.
        left: when a call last did something that may lead away from the page, if it did.
    """

    page: str = ""
    behind: bool = False
    left: float | None = None


def judge(
    memory: Memory,
    tool: str,
    arguments: Mapping[str, Any],
    result: Mapping[str, Any],
    *,
    now: float,
) -> tuple[Memory, str | None]:
    """Weighs one result against what was known before it.

    Args:
        memory: what was known; `Memory()` for a new session.
        tool: the tool's name on the server.
        arguments: the arguments of the call.
        result: the result of tools/call; untrusted, any shape.
        now: seconds on a clock that only goes forward.

    Returns:
        what is known now, and a clause that says what was lost, or None.
    """
    text = _text(result)
    failed = result.get("isError") is True
    if tool == "browser_close" and not failed:
        return Memory(), None
    leaves = not failed and _leaves(arguments)
    view = read_view(tool, text)
    if view is None:
        if failed and memory.page and _NO_PAGE_ERRORS.search(text):
            return Memory(), CLOSED
        return evolve(memory, left=now if leaves else memory.left), None
    if view.real:
        known = _remember(memory, tool, view)
        return evolve(known, left=now if leaves else None), None
    late = memory.left is not None and now - memory.left <= _LATE
    explained = leaves or late or (not failed and _goes_blank(memory, tool, arguments))
    return Memory(), RESET if memory.page and not explained else None


def read_view(tool: str, text: str) -> View | None:
    """The tabs as `text`, a result of `tool`, shows them; None if it does not."""
    sections = _sections(text)
    if tool == "browser_tabs" and "Result" in sections:
        return _tabs(sections["Result"])
    if "Result" in sections and tool not in _TRUSTED_RESULTS:
        return None
    if "Open tabs" in sections:
        return _tabs(sections["Open tabs"])
    if match := _PAGE_URL.search(sections.get("Page", "")):
        # A single tab is not listed.
        url = match[1].strip()
        return View(url, (url,))
    return None


def _sections(text: str) -> dict[str, str]:
    """Bodies by title, where a later section replaces an earlier one of the same title."""
    parts = _SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _tabs(listing: str) -> View | None:
    listing = listing.strip()
    if listing.startswith(_NO_TABS):
        return View("", ())
    current, tabs = "", []
    for line in listing.splitlines():
        if match := _TAB.match(line):
            # A title may hold anything, brackets included, so the address is read from the end.
            url = line.removesuffix(" [crashed]").rpartition("](")[2].removesuffix(")")
            tabs.append(url)
            current = url if match["current"] else current
    return View(current, tuple(tabs)) if tabs else None


def _remember(memory: Memory, tool: str, view: View) -> Memory:
    page = view.current if view.current in view.real else view.real[0]
    if page == memory.page and tool != "browser_tabs":
        return memory
    if tool == "browser_navigate":
        # A new address is one more entry in the history, on top of the page that was there.
        return evolve(memory, page=page, behind=memory.page != "")
    return Memory(page)


def _goes_blank(memory: Memory, tool: str, arguments: Mapping[str, Any]) -> bool:
    """Whether what the tool is for can end on an empty page."""
    if tool == "browser_navigate_back":
        return not memory.behind
    if tool == "browser_tabs":
        return arguments.get("action") == "close"
    return tool in _MAY_GO_BLANK


def _leaves(arguments: Mapping[str, Any]) -> bool:
    """Whether the call worked on something that may lead to another page, soon or later."""
    code = arguments.get("function", arguments.get("code"))
    leaving = isinstance(code, str) and _LEAVES.search(code) is not None
    return leaving or _found_element(arguments)


def _found_element(arguments: Mapping[str, Any]) -> bool:
    """Whether the call worked on an element that an empty page does not have."""
    if arguments.get("fields"):
        return True
    named = (arguments.get(key) for key in _ELEMENT_ARGUMENTS)
    return any(isinstance(name, str) and name.strip() not in _ALWAYS_THERE for name in named)


def _text(result: Mapping[str, Any]) -> str:
    content = result.get("content")
    blocks = content if isinstance(content, list) else []
    texts = [block.get("text") for block in blocks if isinstance(block, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))
