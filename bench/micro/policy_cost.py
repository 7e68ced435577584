"""What governance adds to the CPU time of a plain tools/call: ten rules, and the record.

As `plain_path.py`: no socket and no other process. Four routers run in one process and take turns,
a hundred calls each, so that a busy machine slows down all of them alike: without anything, with a
policy of ten rules, with the record of calls, with both. Needs kars-plugin-toolpolicy.

    python bench/micro/policy_cost.py
    python bench/micro/policy_cost.py --limit 1.15  # exit 1 if the policy costs more
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from agent_kit import configuration, open_bench

BATCH = 100
# What a platform team might write: the call that is measured passes all of them and is allowed by
# the last one, whose condition and schema have to be looked at.
RULES: list[dict[str, Any]] = [
    {"effect": "deny", "tools": ["delete_*", "drop_*"]},
    {"effect": "deny", "servers": ["staging-*"]},
    {"effect": "approve", "tools": ["write_*"], "annotations": {"destructiveHint": True}},
    {"effect": "deny", "tools": ["exec"], "when": "args.command.contains('rm')"},
    {"effect": "approve", "tools": ["send_*"], "when": "size(args) > 3"},
    {"effect": "deny", "resources": ["file:///etc/*"]},
    {"effect": "deny", "tools": ["*"], "when": "has(args.url) && args.url.startsWith('http:')"},
    {"effect": "deny", "prompts": ["internal-*"]},
    {"effect": "redact", "redact": {"kinds": ["bearer", "jwt", "github"]}},
    {
        "effect": "allow",
        "tools": ["re*"],
        "when": "agent.client != 'nobody'",
        "arguments": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
]
POLICY = {"name": "bench", "default": "deny", "rules": RULES}


async def main() -> int:
    """Measures, and prints each ratio to the plain router."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--limit", type=float, help="the largest ratio of the policy's router")
    asked = parser.parse_args()
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)
    with tempfile.TemporaryDirectory() as directory:
        audit = {"path": str(Path(directory, "audit.jsonl"))}
        other = {"path": str(Path(directory, "other.jsonl"))}
        kinds: dict[str, dict[str, Any]] = {
            "plain": {},
            "policy": {"policies": [POLICY]},
            "record": {"audit": audit},
            "both": {"policies": [POLICY], "audit": other},
        }
        taken = await measure(kinds, asked.rounds)
    for name, seconds in taken.items():
        ratios = [mine / plain for mine, plain in zip(seconds, taken["plain"], strict=True)]
        print(
            f"{name:8} {statistics.median(seconds) * 1e6:6.0f} us a call, "
            f"{statistics.median(ratios):.3f} of plain"
        )
    costs = [a / b for a, b in zip(taken["policy"], taken["plain"], strict=True)]
    return int(asked.limit is not None and statistics.median(costs) > asked.limit)


async def measure(kinds: dict[str, dict[str, Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a call, by router and round."""
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    options = {"box": {"ping_interval": None, "responses": "json"}}
    async with AsyncExitStack() as stack:
        agents = {}
        for name, more in kinds.items():
            config = configuration({"box": {}}, **more)
            bench = await stack.enter_async_context(open_bench(config, options=options))
            agents[name] = await bench.connect()
        for number in range(rounds + 2):
            for name, agent in agents.items():
                before = time.process_time()
                for index in range(BATCH):
                    result = await agent.call("box__read", n=index)
                    assert not result.get("isError"), result
                if number >= 2:  # the first ones warm up
                    taken[name].append((time.process_time() - before) / BATCH)
    return taken


if __name__ == "__main__":
    sys.exit(trio.run(main))
