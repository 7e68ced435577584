from __future__ import annotations

from pathlib import Path

import pytest

from kars_router.builtins.credentials import kars_credentials
from kars_router.errors import UserError
from kars_router.model import ServerInfo


@pytest.mark.parametrize(
    "content",
    [b"", b" \n", b"se\xe9cret", b"a\nb", b"Bearer secret", b"a" * (64 * 1024 + 1), b"\xff" * 9],
    ids=["empty", "blank", "latin", "lines", "scheme", "large", "binary"],
)
async def test_a_file_without_a_token_is_not_sent_and_not_quoted(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    found = kars_credentials(server=ServerInfo(name="s", bearer_from_file=str(path)))
    assert found is not None
    with pytest.raises(UserError) as caught:
        await found.headers(refresh=False)
    expected = f"servers.s: the file {path} holds no usable bearer token"
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", ["none", ".", "a\0b"])
async def test_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    server = ServerInfo(name="s", bearer_from_file=f"{tmp_path}/{name}")
    found = kars_credentials(server=server)
    assert found is not None
    with pytest.raises(UserError, match=r"servers\.s\.bearerFromFile: .* cannot be read: \S"):
        await found.headers(refresh=False)
