from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import msgspec
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from kars_router.model import Fate
from kars_router.telemetry import METRICS_TYPE, Metrics, configure_logging, log, server_logger


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_one_json_object() -> None:
    out = io.StringIO()
    configure_logging(style="json", stream=out)
    log().info("something", server="box", text='a "quoted"\nline')
    (line,) = out.getvalue().splitlines()
    fields = msgspec.json.decode(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "event": "something",
        "level": "info",
        "server": "box",
        "text": 'a "quoted"\nline',
    }


@pytest.mark.parametrize(("stream", "json"), [(io.StringIO, True), (Terminal, False)])
def test_the_style_goes_by_where_it_is_read(stream: type[io.StringIO], json: bool) -> None:
    out = stream()
    configure_logging(stream=out)
    log().info("something")
    assert out.getvalue().startswith("{") == json


def test_less_important_lines_are_left_out() -> None:
    out = io.StringIO()
    configure_logging(level="warning", style="json", stream=out)
    log().debug("one")
    log().info("two")
    log().warning("three")
    log().error("four")
    events = [msgspec.json.decode(line)["event"] for line in out.getvalue().splitlines()]
    assert events == ["three", "four"]


def test_an_exception_stays_on_one_line() -> None:
    out = io.StringIO()
    configure_logging(style="json", stream=out)
    try:
        raise ValueError("broken")
    except ValueError as error:
        log().error("crashed", exc_info=error)
    (line,) = out.getvalue().splitlines()
    assert "ValueError: broken" in msgspec.json.decode(line)["exception"]


def test_lines_of_the_http_server_are_ours() -> None:
    out = io.StringIO()
    configure_logging(style="json", stream=out)
    logger = server_logger()
    logger.info("not this")
    logger.warning("that %s", "one")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("crash")
    first, second = (msgspec.json.decode(line) for line in out.getvalue().splitlines())
    assert (first["event"], first["level"], first["message"]) == (
        "http_server",
        "warning",
        "that one",
    )
    assert "ValueError: broken" in second["exception"]
    assert server_logger() is not logger
    assert len(logger.handlers) == 1
    assert "kars_router.hypercorn" not in logging.root.manager.loggerDict


def test_a_terminal_obeys_nothing_that_an_agent_or_a_server_sent() -> None:
    stream = io.StringIO()
    configure_logging(style="console", stream=stream)
    log().warning("call_denied", tool="test:a\x1b[2Jb", agent="ordinary")
    said = stream.getvalue()
    assert "\x1b[2J" not in said
    assert "\\x1b[2J" in said
    assert "'ordinary'" not in said


def test_a_traceback_on_a_terminal_shows_no_values() -> None:
    stream = io.StringIO()
    configure_logging(style="console", stream=stream)
    arguments = {"password": "hunter" + "2"}
    try:
        raise ValueError(len(arguments))
    except ValueError:
        log().exception("plugin_error")
    assert "ValueError: 1" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_a_file_gets_no_colour() -> None:
    stream = io.StringIO()
    configure_logging(style="console", stream=stream)
    log().error("plugin_broken", plugin="mine")
    assert "plugin_broken" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_each_router_counts_for_itself() -> None:
    one, two = Metrics(), Metrics()
    one.calls.labels("box", "executed", "ok").inc()
    labels = {"server": "box", "fate": "executed", "code": "ok"}
    assert one.registry.get_sample_value("kars_calls_total", labels) == 1
    assert two.registry.get_sample_value("kars_calls_total", labels) is None


def test_calls_are_counted_by_server_fate_and_code() -> None:
    metrics = Metrics()
    counted = [("box", Fate.EXECUTED, "ok")] * 2 + [("box", Fate.UNKNOWN, "timeout")]
    for server, fate, code in [*counted, ("other", Fate.EXECUTED, "ok")]:
        metrics.call_ended(server, fate, code)
    shown = [line for line in metrics.render().decode().splitlines() if "calls_total{" in line]
    assert sorted(shown) == [
        'kars_calls_total{code="ok",fate="executed",server="box"} 2.0',
        'kars_calls_total{code="ok",fate="executed",server="other"} 1.0',
        'kars_calls_total{code="timeout",fate="unknown",server="box"} 1.0',
    ]


def test_metrics_can_be_parsed_and_are_explained() -> None:
    families = list(text_string_to_metric_families(Metrics().render().decode()))
    assert all(family.name.startswith("kars_") for family in families)
    assert all(family.documentation for family in families)
    assert METRICS_TYPE.startswith("text/plain; version=0.0.4")
    assert {
        "kars_agent_sessions",
        "kars_calls",
        "kars_config_reloads",
        "kars_listen_streams",
        "kars_pings",
        "kars_pong_seconds",
        "kars_session_losses",
        "kars_upstream_generations",
        "kars_upstream_sessions",
    } <= {family.name for family in families}
