"""Latency, throughput and processor time of small calls at 1, 16 and 64 connections."""

from __future__ import annotations

from collections.abc import Iterator

from bench.context import Context
from bench.loads import Work, measure
from bench.model import Figure
from bench.subjects import HYPERCORN, LEAST

SUITE = "calls"
CONNECTIONS = (1, 16, 64)


def run(context: Context) -> Iterator[Figure]:
    """Every subject, the least router, and the router under plain hypercorn, in turns."""
    works = [Work(name=work_of(n), tool="json_128", connections=n) for n in CONNECTIONS]
    yield from measure(context, SUITE, (*context.subjects, LEAST, HYPERCORN), works)


def work_of(connections: int) -> str:
    """What the work is called in figures."""
    return "1 connection" if connections == 1 else f"{connections} connections"
