"""The same with results of 1 KiB, 64 KiB and 1 MiB, as JSON and as an event stream."""

from __future__ import annotations

from collections.abc import Iterator

from bench.context import Context
from bench.loads import Work, measure
from bench.model import Figure

SUITE = "sizes"
SIZES = {"1 KiB": 1024, "64 KiB": 64 * 1024, "1 MiB": 1024 * 1024}
KINDS = {"JSON": "json", "SSE": "sse"}
CONNECTIONS = (1, 16, 64)


def run(context: Context) -> Iterator[Figure]:
    """Every subject, in turns."""
    works = [
        Work(name=work_of(size, kind, n), tool=f"{KINDS[kind]}_{SIZES[size]}", connections=n)
        for size in SIZES
        for kind in KINDS
        for n in (CONNECTIONS if not context.quick else (16,))
    ]
    yield from measure(context, SUITE, context.subjects, works)


def work_of(size: str, kind: str, connections: int) -> str:
    """What the work is called in figures."""
    return f"{size}, {kind}, {connections} connection{'s' if connections > 1 else ''}"
