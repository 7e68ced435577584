"""A rule that denies a resource is not got past by spelling its URI in another way."""

from __future__ import annotations

import pytest
from kars_plugin_toolpolicy.testing import call, engine, said

DENY = {
    "name": "p",
    "default": "allow",
    "rules": [
        {"name": "etc", "effect": "deny", "resources": ["file:///etc/*", "file:///home/key"]},
        {"name": "host", "effect": "deny", "resources": ["https://Intern.example/*"]},
    ],
}
PROFILE = """
policies:
  - name: a
    type: capability
    allowed_actions: ["*"]
    denied_actions: ["resource:file:///etc/*", "tool:Drop"]
"""
ETC = [
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file:///ETC/passwd",
    "file:/etc/passwd",
    "file:etc/passwd",
    "file://localhost/etc/passwd",
    "file://LOCALHOST./etc/passwd",
    "file:////etc/passwd",
    "file:///./etc//passwd",
    "file:///srv/..//etc/passwd",
    "file:///srv/%2e%2e/etc/passwd",
    "file:///srv/%252e%252e/etc/passwd",
    "file:///%65tc/passwd",
    "file:///%2565tc/passwd",
    "file:///\\etc\\passwd",
    "file:///srv\\..\\etc\\passwd",
    " file:///etc/passwd",
    "\x00file:///etc/passwd",
    "fi\nle:///e\ttc/passwd",
    "file:///\uff45tc/passwd",
]


@pytest.mark.parametrize("uri", ETC)
def test_a_denied_file_stays_denied(uri: str) -> None:
    assert said(engine(DENY).decide(call(resource=uri))) == "deny p/etc"


@pytest.mark.parametrize("uri", ETC)
def test_a_file_that_a_profile_denies_stays_denied(uri: str) -> None:
    policy = engine({"name": "p", "agtProfile": {"inline": PROFILE}})
    assert said(policy.decide(call(resource=uri))) == "deny p/agtProfile/a"


@pytest.mark.parametrize(
    "uri",
    [
        "file:///home/key",
        "file:///home/key?x=1",
        "file:///home/key#x",
        "file:///home/key/",
        "file:///home/key/.",
        "file:///home/key%3Fx",
    ],
)
def test_what_is_behind_the_path_changes_nothing(uri: str) -> None:
    assert said(engine(DENY).decide(call(resource=uri))) == "deny p/etc"


@pytest.mark.parametrize(
    "uri",
    [
        "https://intern.example/x",
        "HTTPS://INTERN.EXAMPLE/x",
        "https://intern.example:443/x",
        "https://intern.example./x",
        "https://me:pw@intern.example/x",
        "https://\uff49ntern.example/x",
    ],
)
def test_a_denied_host_stays_denied(uri: str) -> None:
    assert said(engine(DENY).decide(call(resource=uri))) == "deny p/host"


@pytest.mark.parametrize(
    "uri", ["file:///srv/etc/x", "https://extern.example/intern.example/", "mail:etc", "", "%", ":"]
)
def test_other_resources_are_let_through(uri: str) -> None:
    assert said(engine(DENY).decide(call(resource=uri))) == "allow p/default"


@pytest.mark.parametrize("uri", ETC[1:])
def test_only_what_every_reader_reads_alike_is_allowed(uri: str) -> None:
    policy = engine(
        {"name": "p", "rules": [{"effect": "allow", "resources": ["file:///etc/passwd"]}]}
    )
    assert said(policy.decide(call(resource=uri))) == "deny p/default"
    assert said(policy.decide(call(resource=ETC[0]))) == "allow p/rules[0]"


def test_names_of_tools_and_prompts_mean_what_they_say() -> None:
    policy = engine({"name": "p", "agtProfile": {"inline": PROFILE}})
    assert said(policy.decide(call(tool="Drop"))) == "deny p/agtProfile/a"
    assert said(policy.decide(call(tool="drop"))) == "allow p/agtProfile/a"
    rule = {"effect": "deny", "prompts": ["Secret"]}
    policy = engine({"name": "p", "default": "allow", "rules": [rule]})
    assert said(policy.decide(call(prompt="Secret"))) == "deny p/rules[0]"
    assert said(policy.decide(call(prompt="secret"))) == "allow p/default"
