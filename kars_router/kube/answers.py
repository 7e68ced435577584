"""Answers of an API server: read within limits, decoded, and told from those of anything else.

Owns how much is read and which error an answer becomes. Must not know what was asked.
"""

from __future__ import annotations

from typing import Any, Final

import httpx
import msgspec

from kars_router.kube.errors import AnswerError, error_of
from kars_router.transports.answers import open_chunks, release

LARGEST: Final = 64 * 1024 * 1024  # one page of a list of objects of at most 1.5 MiB each
_LARGEST_ERROR: Final = 1024 * 1024
_LONGEST_WAIT: Final = 3600.0
_SHOWN: Final = 120


class TooLargeError(AnswerError):
    """An answer exceeds the limit; a list can be asked for in smaller pages."""


async def read_object(response: httpx.Response, where: str) -> dict[str, Any]:
    """Reads a whole answer, which has to be a JSON object, and releases it.

    Args:
        response: the answer, of which only the head has been read.
        where: the server, for messages.

    Raises:
        ApiError: the server refused.
        AnswerError: it is too large, or not what an API server answers.
        httpx.TransportError: it broke off.
    """
    status = response.status_code
    await check_encoding(response, where)
    if 300 <= status < 400:
        await release(response)
        place = _shown(response.headers.get("location", "an unknown place"))
        raise AnswerError(f"{where} sends us on to {place}, which the Kubernetes API never does")
    failed = status >= 400
    data = await _read(response, _LARGEST_ERROR if failed else LARGEST, where)
    value = _decoded(data)
    if failed:
        raise _refusal(response, value, data, where)
    if not isinstance(value, dict):
        raise AnswerError(f"{where} is no Kubernetes API: it answers with {_kind(response, data)}")
    return value


async def check_encoding(response: httpx.Response, where: str) -> None:
    """Refuses a compressed answer: we ask for none, and a few kilobytes can become gigabytes.

    One that is refused is released.

    Raises:
        AnswerError: it is compressed.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        await release(response)
        raise AnswerError(f"{where} answers in the content encoding {_shown(encoding)}")


def _refusal(response: httpx.Response, value: object, data: bytes, where: str) -> Exception:
    status = response.status_code
    wait = _retry_after(response)
    if isinstance(value, dict) and value.get("kind") == "Status":
        return error_of(value, http_status=status, retry_after=wait)
    if status == 404 and not data.strip().startswith(b"<"):
        # The server's own words for a path that it does not serve.
        return error_of({"reason": "NotFound", "message": _shown(data)}, http_status=status)
    if status in {401, 429} or status >= 500:  # proxies and overloaded servers say so in any form
        message = f"{where} answers with status {status} and {_kind(response, data)}"
        return error_of({"message": message}, http_status=status, retry_after=wait)
    return AnswerError(
        f"{where} is no Kubernetes API: it answers with status {status} and {_kind(response, data)}"
    )


async def _read(response: httpx.Response, limit: int, where: str) -> bytes:
    parts, size = [], 0
    async with open_chunks(response) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise TooLargeError(f"{where} answers with more than {limit >> 20} MiB")
            parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decoded(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _kind(response: httpx.Response, data: bytes) -> str:
    """What an answer is, in a few words."""
    start = data.lstrip()[:200].lower()
    if not start:
        return "nothing"
    if _decoded(data) is not None:
        return "JSON that is no object of the Kubernetes API"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    kind = response.headers.get("content-type", "").partition(";")[0].strip()
    return f"{_shown(kind)} that cannot be read" if kind else "something that cannot be read"


def _shown(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    plain = "".join(each if each.isprintable() else " " for each in text)
    plain = " ".join(plain.split())
    return plain if len(plain) <= _SHOWN else f"{plain[:_SHOWN]}..."


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    # The other form is a date, which API servers do not use.
    if not (text.isascii() and text.isdigit()):
        return None
    return min(float(text), _LONGEST_WAIT)
