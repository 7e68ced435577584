"""A server of notes, to be governed: `python server.py [PORT]`. For the example, not for notes."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import trio

from kars_router.testing import Call, HeartbeatServer, serve

NOTES = {"shopping": "milk, bread", "wifi": "ssid: home\npassword: hunter2!"}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def text(words: str) -> dict[str, object]:
    """What a tool answers."""
    return {"content": [{"type": "text", "text": words}], "isError": False}


async def read_note(call: Call) -> dict[str, object]:
    """Shows one note."""
    await trio.lowlevel.checkpoint()
    return text(NOTES.get(call.arguments["name"], "there is no such note"))


async def write_note(call: Call) -> dict[str, object]:
    """Keeps one note."""
    await trio.lowlevel.checkpoint()
    NOTES[call.arguments["name"]] = call.arguments["text"]
    return text("written")


async def delete_note(call: Call) -> dict[str, object]:
    """Forgets one note."""
    await trio.lowlevel.checkpoint()
    NOTES.pop(call.arguments["name"], None)
    print("deleted", call.arguments["name"], flush=True)
    return text("deleted")


async def drop_all(_: Call) -> dict[str, object]:
    """Forgets all notes."""
    await trio.lowlevel.checkpoint()
    NOTES.clear()
    return text("dropped")


TOOLS: dict[str, tuple[Callable[[Call], Awaitable[dict[str, object]]], str]] = {
    "read_note": (read_note, "Read a note."),
    "write_note": (write_note, "Write a note."),
    "delete_note": (delete_note, "Delete a note."),
    "drop_all": (drop_all, "Delete all notes."),
}


async def main(port: int) -> None:
    """Serves until it is interrupted."""
    async with HeartbeatServer.open() as server:
        server.tools.clear()  # those that it has for tests
        for name, (handler, description) in TOOLS.items():
            server.add_tool(name, handler, description=description, schema=SCHEMA)
        async with serve(server.app, port=port) as url:
            print(f"{url}/mcp", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 8931)
    except* KeyboardInterrupt:
        pass
