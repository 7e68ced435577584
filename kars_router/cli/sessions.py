"""`kars sessions`: the live sessions of a running router."""

from __future__ import annotations

from typing import Any

import click

from kars_router.cli.admin import admin_option, ask
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, emit, output_option, table

PATH = "/api/v1/sessions"


@click.command(
    "sessions",
    epilog=examples(
        ("Of the router on this machine", "kars sessions"),
        ("Of another one, for a program", "kars sessions --admin 127.0.0.1:9091 -o json"),
    ),
)
@admin_option
@output_option
def command(*, admin: str | None, output: Output) -> None:
    """List the sessions of a running router.

    One table for the agents, one for the sessions with servers that are kept alive on their
    behalf. GENERATION counts how often such a session had to be begun; LISTEN is the state of its
    GET stream.
    """
    data = ask(admin, PATH)
    emit(data, output, lambda: as_tables(data))


def as_tables(data: dict[str, Any]) -> str:
    """The answer of `/api/v1/sessions` as two tables."""
    agents = table(
        ("AGENT", "CLIENT", "REVISION", "ENDPOINT", "STREAMS", "IN FLIGHT", "IDLE"),
        [
            (
                row["agent"],
                row["client"],
                row["revision"],
                f"/mcp/{row['endpoint']}" if row["endpoint"] else "/mcp",
                row["streams"],
                row["inFlight"],
                _seconds(row["idleSeconds"]),
            )
            for row in data["agents"]
        ],
    )
    upstream = table(
        ("SERVER", "AGENT", "GENERATION", "LISTEN", "PINGS", "CALLS", "IN FLIGHT", "IDLE"),
        [
            (
                row["server"],
                row["agent"] or "(router)",
                row["generation"],
                row["listen"],
                row["pings"],
                row["calls"],
                row["inFlight"],
                _seconds(row["idleSeconds"]),
            )
            for row in data["upstream"]
        ],
    )
    return f"{agents}\n\n{upstream}"


def _seconds(value: float) -> str:
    minutes, seconds = divmod(int(value), 60)
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
