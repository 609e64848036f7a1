"""A program on a pseudo-terminal of 100 columns: what it writes, and when."""

import os
import pty
import subprocess
import termios
import time
from collections.abc import Sequence


def timed_output(command: Sequence[object], **environment: str) -> tuple[int, list[tuple[float, str]]]:
    """The exit code, and (seconds, text) of the pieces of output; the last one is empty and marks the end."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (40, 100))
    settings = os.environ | {"TERM": "xterm"} | environment
    process = subprocess.Popen(list(map(str, command)), stdin=child, stdout=child, stderr=child, env=settings)
    os.close(child)
    pieces, start = [], time.monotonic()
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:  # the program has ended
            break
        pieces.append((time.monotonic() - start, data.decode("utf-8", "replace")))
    status = process.wait()
    os.close(parent)
    return status, [*pieces, (time.monotonic() - start, "")]


def silences(pieces: list[tuple[float, str]], longest: float) -> list[str]:
    """The pauses of more than `longest` seconds: how long, and what stood on the screen."""
    found, before, text = [], 0.0, "the start"
    for seconds, piece in pieces:
        if seconds - before > longest:
            found.append(f"{seconds - before:.1f} s after {text.strip()[-80:]!r}")
        before, text = seconds, piece or text
    return found
