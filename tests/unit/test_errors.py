from __future__ import annotations

import pytest

from kars_router import errors
from kars_router.errors import (
    AgentError,
    CallFailed,
    ConfigError,
    HandshakeError,
    KarsError,
    PluginError,
    UndeterminedError,
    UpstreamError,
    UserError,
)
from kars_router.model import Failure, Phase


def test_every_error_has_one_root() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    ours = [value for value in found if issubclass(value, BaseException)]
    assert len(ours) >= 9
    assert all(issubclass(value, KarsError) for value in ours)
    assert not issubclass(KarsError, ValueError | OSError)


@pytest.mark.parametrize(
    ("kind", "parent"),
    [
        (ConfigError, UserError),
        (UndeterminedError, UserError),
        (PluginError, UserError),
        (HandshakeError, UpstreamError),
        (CallFailed, UpstreamError),
    ],
)
def test_errors_are_sorted_by_blame(kind: type[KarsError], parent: type[KarsError]) -> None:
    assert issubclass(kind, parent)
    others = {UserError, UpstreamError, AgentError} - {parent}
    assert not any(issubclass(kind, other) for other in others)


def test_what_could_not_be_found_out_has_its_own_exit_code() -> None:
    codes = (UserError.exit_code, ConfigError.exit_code, UndeterminedError.exit_code)
    assert codes == (1, 1, 3)


def test_a_refused_configuration_lists_every_problem() -> None:
    error = ConfigError(["a: wrong", "b: wrong too"], "kars.yaml")
    assert (error.problems, error.source) == (("a: wrong", "b: wrong too"), "kars.yaml")
    assert str(error) == "a: wrong\nb: wrong too"


def test_an_agents_mistake_is_an_answer_unless_said_otherwise() -> None:
    error = AgentError(-32602, "no such thing")
    assert (error.code, error.message, error.status) == (-32602, "no such thing", 200)
    assert AgentError(-32600, "x", 404).status == 404


def test_a_failure_is_one_line_with_a_bounded_excerpt() -> None:
    failure = Failure(
        server="box",
        phase=Phase.AWAIT,
        status=404,
        body="x" * 512,
        rpc_code=-1,
        detail="POST was refused",
    )
    text = str(CallFailed(failure))
    assert text.startswith("box: POST was refused, status 404, JSON-RPC error -1, body 'xxx")
    assert text.count("x") < 170
    assert "\n" not in str(CallFailed(Failure(server="box", phase=Phase.AWAIT, body="a\nb")))
    assert CallFailed(failure).failure is failure
