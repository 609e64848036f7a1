"""A plain text file as documents: pieces that end at line ends."""

from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError

PIECE_CHARACTERS, MIN_PIECE_CHARACTERS = 1 << 16, 200
LOOKED_AT_BYTES = 1 << 20
MAX_INVALID = 1e-3  # fraction of a file's bytes that are not UTF-8


def pieces(file: Path, small: bool) -> Iterator[str]:
    """A text file in pieces of at least PIECE_CHARACTERS, or, with `small`, of a hundredth of it if that is less, cut
    at line ends. Invalid UTF-8 becomes U+FFFD."""
    hundredth = max(MIN_PIECE_CHARACTERS, file.stat().st_size // 100)
    least = min(PIECE_CHARACTERS, hundredth) if small else PIECE_CHARACTERS
    lines, size = [], 0
    refuse_other_encodings(file)
    with open(file, encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            lines.append(line)
            size += len(line)
            if size >= least:
                yield "".join(lines)
                lines, size = [], 0
    if lines:
        yield "".join(lines)


def refuse_other_encodings(file: Path) -> None:
    """Raise UserError for a file that is not UTF-8, by its beginning; single invalid bytes further on are replaced."""
    with open(file, "rb") as stream:
        start = stream.read(LOOKED_AT_BYTES)
    wrong = start.decode(errors="replace").count("\ufffd") - start.decode(errors="ignore").count("\ufffd")
    if b"\0" in start or wrong > 1 + len(start) * MAX_INVALID:
        raise UserError(f"--text {file}: not UTF-8 text; convert it: iconv -f ENCODING -t UTF-8")
