"""The naive clients lose their pages. If they did not, no other test here would mean anything."""

from __future__ import annotations

from playwright.controls import Controls
from playwright.servers import REAP_TIME


def test_without_a_stream_the_old_server_reaps(controls: Controls) -> None:
    assert controls.without_stream.reaped, controls.without_stream


def test_with_unanswered_pings_the_new_server_reaps(controls: Controls) -> None:
    control = controls.without_pongs
    assert control.reaped, control
    assert control.pings == 1
    assert control.lived is not None
    assert REAP_TIME - 1 < control.lived < REAP_TIME + 4
