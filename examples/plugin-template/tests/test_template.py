from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
from kars_plugin_template import ReadOnlyGovernor, ReadOnlyPlugin, plugin

from kars_router.errors import PluginError
from kars_router.hookspecs import GovernanceSettings
from kars_router.model import Ruling, ServerInfo
from kars_router.testing import call_end, decide, governed_call, plugin_host

GOVERNOR = ReadOnlyGovernor(frozenset({"files"}))
READS = {"readOnlyHint": True}


@pytest.mark.parametrize(
    ("server", "annotations", "ruling"),
    [
        ("files", READS, Ruling.ALLOW),
        ("files", {}, Ruling.DENY),
        ("files", {"readOnlyHint": "yes"}, Ruling.DENY),
        ("files", {"readOnlyHint": False, "destructiveHint": False}, Ruling.DENY),
        ("elsewhere", {}, Ruling.ALLOW),
    ],
)
async def test_only_tools_that_read_may_be_called(
    server: str, annotations: dict[str, Any], ruling: Ruling
) -> None:
    call = governed_call("remove", {"path": "/secret"}, server=server, annotations=annotations)
    decision = await decide(GOVERNOR, call)
    assert decision.ruling is ruling
    assert "/secret" not in decision.reason


async def test_what_is_no_tool_passes() -> None:
    call = governed_call("file:///a", server="files", method="resources/read")
    assert (await decide(GOVERNOR, call)).ruling is Ruling.ALLOW


async def test_results_are_not_withheld() -> None:
    call = governed_call(server="files", annotations=READS)
    assert await GOVERNOR.after_call(call, call_end(result={"content": []})) is None
    await GOVERNOR.aclose()


def test_kars_admit_tool_hides_what_may_not_be_called() -> None:
    host = plugin_host(ReadOnlyPlugin(), options={"servers": ["files"]})
    server = ServerInfo(name="files", allowed_tools=("*",))
    # Nobody else is loaded here, and a tool needs somebody who says True.
    assert not host.admits_tool(server, "remove", {"name": "remove"})
    loaded = ReadOnlyPlugin(frozenset({"files"}))
    assert loaded.kars_admit_tool(server, {"annotations": READS}) is None
    assert loaded.kars_admit_tool(server, {"annotations": None}) is False
    assert loaded.kars_admit_tool(ServerInfo(name="elsewhere"), {}) is None


def test_kars_governors_makes_one_if_there_is_something_to_do() -> None:
    settings = GovernanceSettings()
    assert len(plugin_host(ReadOnlyPlugin(), options={"servers": ["a"]}).governors(settings)) == 1
    assert plugin_host(ReadOnlyPlugin()).governors(settings) == ()


@pytest.mark.parametrize("options", [{"server": ["a"]}, {"servers": "a"}, {"servers": [1]}])
def test_kars_configure_names_a_mistake(options: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match=r"plugins\.options\.plugin: .*`servers`"):
        plugin_host(ReadOnlyPlugin(), options=options)


def test_the_entry_point_is_the_plugin() -> None:
    points = importlib.metadata.entry_points(group="kars_router", name="template")
    assert [point.load() for point in points] == [plugin]
