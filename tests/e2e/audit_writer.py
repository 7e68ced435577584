"""Kills processes that write to a journal, at random points, and looks at what they have left.

A program of its own, because it forks: `python audit_writer.py DIRECTORY ROUNDS SEED`. Each round
forks a writer, which tells of every step that has returned through a pipe, kills it after a random
time, and checks what the file says against what the writer was told. Prints one line of JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import structlog

from kars_router.audit import Journal
from kars_router.audit.verify import verify, with_older
from kars_router.config.schema import Audit, AuditContent, Fsync
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling

ALLOW = Decision(ruling=Ruling.ALLOW, rule="all")
PARALLEL = 8
F_SETPIPE_SZ = 1031


def journal(directory: Path) -> Journal:
    settings = Audit(
        path=directory / "audit.jsonl",
        fsync=Fsync.NEVER,
        rotate=20_000,
        checkpoint=16,
        content=AuditContent.ALL,
    )
    return Journal.open(settings, state=directory, metrics=None)


def write(directory: Path, round_: int, tell: int, chance: random.Random) -> NoReturn:
    """Makes calls, several at a time, until killed."""
    book = journal(directory)
    os.write(tell, b"ready\n")
    under_way: list[tuple[str, bool]] = []
    number = 0
    while True:
        choice = chance.random()
        if len(under_way) < PARALLEL and choice < 0.5:
            ident = f"{round_}-{number}"
            number += 1
            params = b'{"name":"t","arguments":{"text":"%b"}}' % (b"x" * chance.randrange(9000))
            book.accepted(
                GovernedCall(
                    id=ident, agent="a", server="s", method="tools/call", name="t", params=params
                ),
                ALLOW,
            )
            under_way.append((ident, False))
            os.write(tell, f"accepted {ident}\n".encode())
        elif under_way:
            ident, sent = under_way.pop(chance.randrange(len(under_way)))
            if not sent:
                book.sent(ident, 1)
                under_way.append((ident, True))
                os.write(tell, f"sent {ident}\n".encode())
            else:
                book.ended(ident, CallEnd(decision=ALLOW, fate=Fate.EXECUTED, result=b"{}"))
                os.write(tell, f"ended {ident}\n".encode())


def steps(text: bytes) -> dict[str, str]:
    """The last step of each call that a writer told of."""
    found = {}
    for line in text.decode().splitlines(keepends=True):
        words = line.split()
        if line.endswith("\n") and len(words) == 2:
            found[words[1]] = words[0]
    return found


def rest_of(reader: int) -> bytes:
    text = b""
    while chunk := os.read(reader, 1 << 20):
        text += chunk
    return text


def read_until(reader: int, delay: float) -> bytes:
    """What a writer tells until `delay` seconds after it is ready, at most 30 seconds."""
    text, end, ready = b"", time.monotonic() + 30, False
    while (left := end - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        text += os.read(reader, 1 << 20)
        if not ready and text.startswith(b"ready\n"):
            ready, end = True, time.monotonic() + delay
    return text


def fates(directory: Path) -> dict[str, str]:
    """The fate of each call on record; a second one for the same call is an error."""
    found: dict[str, str] = {}
    for path in with_older(directory / "audit.jsonl"):
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            if row["event"] == "ended":
                if row["call"] in found:
                    raise SystemExit(f"{row['call']} has two fates")
                found[row["call"]] = row["fate"]
    return found


def die_opening(directory: Path, chance: random.Random) -> int:
    """Kills a process that opens a journal, and mends what is to be mended; 1 if it was not done.

    What it has left must be whole, like all that is left by anybody.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        journal(directory)
        os.write(writer, b"ready")
        signal.pause()
    os.close(writer)
    select.select([reader], [], [], chance.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    unfinished = not rest_of(reader)
    os.close(reader)
    paths = with_older(directory / "audit.jsonl")
    fault = verify(paths).fault if paths[-1].exists() else None
    if fault is not None:
        raise SystemExit(f"after an opening: {fault}")
    return int(unfinished)


def one_round(directory: Path, round_: int, chance: random.Random) -> dict[str, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 1 << 20)
    seed, delay = chance.randrange(1 << 30), chance.random() * 0.03
    child = os.fork()
    if not child:
        os.close(reader)
        write(directory, round_, writer, random.Random(seed))
    os.close(writer)
    try:
        text = read_until(reader, delay)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    last = steps(text + rest_of(reader))
    os.close(reader)
    openings = die_opening(directory, chance)

    paths = with_older(directory / "audit.jsonl")
    before = verify(paths)
    if before.fault is not None:
        raise SystemExit(f"round {round_}: {before.fault}")
    book = journal(directory)
    recovered = dict(book.recovered)
    book.close()
    after = verify(with_older(directory / "audit.jsonl"))
    if after.fault is not None or after.torn or after.unended:
        raise SystemExit(f"round {round_}: {after}")
    known = fates(directory)
    for ident, step in last.items():
        # A step more than was told may have been written, never one less.
        right = {
            "accepted": {"not_executed", "unknown"},
            "sent": {"unknown", "executed"},
            "ended": {"executed"},
        }[step]
        if known.get(ident) not in right:
            raise SystemExit(f"round {round_}: {ident} {step}, but {known.get(ident)}")
    return {
        "calls": len(last),
        "torn": int(before.torn > 0),
        "files": len(paths),
        "openings": openings,
        "unknown": sum(fate is Fate.UNKNOWN for fate in recovered.values()),
        "not_executed": sum(fate is Fate.NOT_EXECUTED for fate in recovered.values()),
    }


def main(directory: Path, rounds: int, seed: int) -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    chance = random.Random(seed)
    total: dict[str, int] = {}
    for round_ in range(rounds):
        # Each journal goes through ten deaths; checking many more files each time takes too long.
        place = directory / str(round_ // 10)
        if not place.exists():
            die_opening(place, chance)
        for key, value in one_round(place, round_, chance).items():
            total[key] = total.get(key, 0) + value
    print(json.dumps(total))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
