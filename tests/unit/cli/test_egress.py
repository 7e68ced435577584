from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ruamel.yaml import YAML

from kars_router.cli.main import main
from kars_router.hookspecs import hookimpl
from kars_router.model import ServerInfo
from kars_router.plugins import Plugins


def kars(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(["egress", "explain", *args])
    out, err = capsys.readouterr()
    return status, out, err


def answers(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[dict[str, Any]]]:
    status, out, err = kars(capsys, *args, "-o", "json")
    assert err == ""
    return status, json.loads(out)


def in_namespace(name: str, port: int) -> dict[str, Any]:
    labels = {"kubernetes.io/metadata.name": name}
    return {
        "to": [{"namespaceSelector": {"matchLabels": labels}}],
        "ports": [{"protocol": "TCP", "port": port}],
    }


def test_one_object_for_each_url(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = answers(
        capsys,
        "http://playwright.tools.svc.cluster.local:8931/mcp",
        "https://MCP.DeepWiki.com./mcp",
        "http://[FD00::1]:8080/",
    )
    assert status == 0
    assert found[0] == {
        "url": "http://playwright.tools.svc.cluster.local:8931/mcp",
        "scope": "in-cluster",
        "host": "playwright.tools.svc.cluster.local",
        "port": 8931,
        "namespace": "tools",
        "rule": in_namespace("tools", 8931),
        "reason": "playwright.tools.svc.cluster.local is a Service of the namespace tools; it was "
        "not read, so that port 8931 of the whole namespace is opened.",
    }
    assert found[1] == {
        "url": "https://MCP.DeepWiki.com./mcp",
        "scope": "external",
        "host": "mcp.deepwiki.com",
        "port": 443,
        "namespace": None,
        "rule": None,
        "reason": "mcp.deepwiki.com is outside of the cluster, and the base policy opens port 443.",
    }
    assert [list(each) for each in found] == [
        ["url", "scope", "host", "port", "namespace", "rule", "reason"]
    ] * 3
    assert (found[2]["scope"], found[2]["host"]) == ("address", "fd00::1")


def test_an_invalid_url_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = answers(capsys, "ftp://h", "https://mcp.example.com/", "http://h:0/")
    assert status == 1
    assert [each["scope"] for each in found] == ["invalid", "external", "invalid"]
    for each in (found[0], found[2]):
        assert (each["host"], each["port"], each["namespace"], each["rule"]) == (None,) * 4
        assert each["reason"]


def test_where_the_sandbox_is(capsys: pytest.CaptureFixture[str]) -> None:
    _, (found,) = answers(capsys, "http://db:1")
    assert (found["namespace"], found["rule"]) == ("default", in_namespace("default", 1))
    _, (found,) = answers(capsys, "http://db:1", "--namespace", "kars-a")
    assert found["rule"] == in_namespace("kars-a", 1)
    url = "http://db.x.svc.k8s.example.com:1"
    _, (found,) = answers(capsys, url, "--cluster-domain", "K8s.Example.com.")
    assert found["rule"] == in_namespace("x", 1)
    _, (found,) = answers(capsys, url)
    assert found["scope"] == "external"


def test_yaml_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    urls = ("http://db:1", "x", "http://h.example:81")
    _, found = answers(capsys, *urls)
    status, out, _ = kars(capsys, *urls, "-o", "yaml")
    assert (status, YAML(typ="safe", pure=True).load(out)) == (1, found)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = kars(capsys, "http://db:1", "https://h.example", "http://h.example:81", "x")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].split() == ["URL", "SCOPE", "HOST", "PORT", "RULE", "WHY"]
    assert "namespace default, TCP 1 " in lines[1]
    assert " none needed " in lines[2]
    world = "0.0.0.0/0 without private ones and ::/0 without private ones, TCP 81"
    assert world in lines[3]
    assert lines[4].split()[:2] == ["x", "invalid"]
    assert "does not start with http://" in lines[4]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "Missing argument"),
        (("http://h", "--namespace", "No_Such"), "--namespace"),
        (("http://h", "--namespace", ""), "--namespace"),
        (("http://h", "--cluster-domain", "a..b"), "--cluster-domain"),
        (("http://h", "--cluster-domain", ""), "--cluster-domain"),
        (("http://h", "-o", "xml"), "xml"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str) -> None:
    status, out, err = kars(capsys, *args)
    assert (status, out) == (2, "")
    assert said in err


def test_what_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    status, (found,) = answers(capsys, "http://\udcff/")
    assert (status, found["url"]) == (1, "http://\\udcff/")


class Opinion:
    """A plugin that wants these rules."""

    def __init__(self, *rules: Mapping[str, Any]) -> None:
        self.rules = rules

    @hookimpl
    def kars_egress_rules(
        self, server: ServerInfo, rules: Sequence[Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        assert server.url == "http://db:1"
        assert list(rules) == [in_namespace("default", 1)]
        return self.rules


@pytest.mark.parametrize("count", [0, 1, 2])
def test_plugins_have_the_last_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    rules = [in_namespace("other", number) for number in range(1, count + 1)]
    load = Plugins.load

    def loaded(**options: Any) -> Plugins:
        plugins = load(**options)
        plugins.register(Opinion(*rules), "opinion")
        return plugins

    monkeypatch.setattr(Plugins, "load", loaded)
    _, (found,) = answers(capsys, "http://db:1")
    assert found["rule"] == (rules[0] if rules else None)
    assert found.get("rules") == (rules if count == 2 else None)
    assert found["reason"].endswith(" Plugins have changed the rules.")
    _, out, _ = kars(capsys, "http://db:1")
    assert ("none needed" in out) is (not rules)
    assert out.count("namespace other") == count
