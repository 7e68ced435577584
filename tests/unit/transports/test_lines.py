from __future__ import annotations

from kars_router.transports.lines import Line, LineDecoder


def test_lines_split_anywhere() -> None:
    text = b"a\r\n\nbc\n" + b"x" * 20 + b"\n" + b"y" * 10 + b"\nrest"
    whole = [
        Line(b"a"),
        Line(b""),
        Line(b"bc"),
        Line(b"x" * 10, b"x" * 20, cut=True),
        Line(b"y" * 10),
    ]
    for size in range(1, len(text) + 1):
        decoder = LineDecoder(10)
        found = [
            line for at in range(0, len(text), size) for line in decoder.feed(text[at : at + size])
        ]
        assert found == whole, size
        assert decoder.rest() == [Line(b"rest")]
        assert decoder.rest() == []


def test_of_a_long_line_only_the_ends_are_kept() -> None:
    decoder = LineDecoder(10_000)
    for _ in range(100):
        assert decoder.feed(b"x" * 999) == []
    (line,) = decoder.feed(b"end\n")
    assert line == Line(b"x" * 4096, b"x" * 253 + b"end", cut=True)
