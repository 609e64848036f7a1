"""Line structure of documents: hard-wrapped prose is joined; lists, tables, code and verse keep their lines."""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

# A text is wrapped if its lines are filled up to a width of at least MIN_WIDTH columns. Verse and lists are shorter or
# ragged: pentameter has 35 to 48 columns, plain text files are wrapped at 60 to 100.
MIN_WIDTH, MAX_WIDTH = 50, 120
SLACK, FITTING = 3, 0.9  # nine of ten lines are at most 3 columns wider: indented first lines, and a few long ones
# Fractions of a document's, and then of a block's, lines that the first word of the next line would not have fitted.
FILLED, BLOCK_FILLED = 0.75, 0.5
SENTENCE_ENDS = (".", "?", "!", ":", '"', "”")
HYPHENS = ("-", "\u2010", "\u00ad")
FENCE = re.compile(r"\s{0,3}(```+|~~~+)")
# A list item, heading, quotation, table row, reference, or the underline of a heading.
OWN_LINE = re.compile(
    r"\s*(?:[-*+•–]\s|\(?(?:\d{1,3}|[a-zA-Z])[.)]\s|#{1,6}\s|>|\||\[\^?\w+\]:|(?:=+|-{3,}|\*{3,})\s*$)"
)
COLUMNS = re.compile(r"[^\s.?!:\"'”’)](?: {2,}|\t+)\S")  # of a table without bars; two spaces after a sentence are none


def keep_structure(text: str) -> str:
    """The text with paragraphs separated by one blank line, hard-wrapped paragraphs joined to one line, and every
    other line break kept. Fenced code is unchanged. Only line feeds separate lines."""
    blocks = split_blocks(text.replace("\r\n", "\n").replace("\f", "\n").expandtabs(4))
    width = wrap_width([block for block in blocks if not is_fixed(block)])
    words = words_within_lines(line for block in blocks for line in block)
    texts = ["\n".join(block) if is_fixed(block) else "\n".join(join_wrapped(block, width, words)) for block in blocks]
    return "\n\n".join(texts).strip("\n")


def split_blocks(text: str) -> list[list[str]]:
    """Paragraphs as lists of lines; a fenced code block, with its blank lines, is a block of its own."""
    blocks: list[list[str]] = [[]]
    fence = ""
    for line in map(str.rstrip, text.split("\n")):
        match = FENCE.match(line)
        if fence:
            blocks[-1].append(line)
            if match and match[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
                blocks.append([])
        elif match:
            fence = match[1]
            blocks.append([line])
        elif line:
            blocks[-1].append(line)
        else:
            blocks.append([])
    return [block for block in blocks if block]


def is_fixed(block: list[str]) -> bool:
    """True if a block is fenced code, or a table whose columns are separated by white space."""
    rows = sum(bool(COLUMNS.search(line.strip())) for line in block)
    return bool(FENCE.match(block[0])) or (rows >= 2 and rows >= len(block) / 2)


def wrap_width(blocks: list[list[str]]) -> int | None:
    """The width in columns at which a document's lines were wrapped; None where they were not."""
    breaks = np.concatenate([measure_breaks(block) for block in blocks]) if blocks else np.empty((0, 2))
    scores: dict[int, float] = {}
    for width in range(MIN_WIDTH, MAX_WIDTH + 1):
        lengths, needed = breaks[breaks[:, 0] > width // 2].T  # without the short lines of dialogue
        if not len(lengths):
            continue
        filled = np.mean(needed > width)
        if filled >= FILLED and np.mean(lengths <= width + SLACK) >= FITTING:
            scores[width] = filled + np.mean(lengths <= width)
    return max(scores, key=scores.__getitem__, default=None)


def measure_breaks(block: list[str]) -> np.ndarray:
    """(breaks, 2): for each line break of a block that may come from wrapping, the width of the line, and its width if
    the first word of the next line stood on it."""
    pairs = zip(block, block[1:], strict=False)
    wrapped = [(columns(a), columns(a) + 1 + columns(b.split()[0])) for a, b in pairs if not OWN_LINE.match(b)]
    return np.array(wrapped).reshape(-1, 2)


def columns(text: str) -> int:
    """Width of a text in a fixed-width font."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def join_wrapped(block: list[str], width: int | None, words: set[str]) -> list[str]:
    """The lines of a paragraph, joined where it was wrapped at `width`. `words`: those of the document."""
    if len(block) == 1 and not OWN_LINE.match(block[0]):
        return [" ".join(block[0].split())]
    needed = measure_breaks(block)[:, 1]
    if width is None or not len(needed) or np.mean(needed > width) < BLOCK_FILLED:
        return block
    lines: list[str] = []
    for previous, line in zip(["", *block], block, strict=False):
        if not lines or OWN_LINE.match(line) or _starts_paragraph(previous, line, width):
            lines.append(line)
        else:  # programs that wrap plain text divide words at their own hyphens only
            lines[-1] = join_lines(lines[-1], line.strip(), words, own_hyphen=True)
    return [line if OWN_LINE.match(line) else " ".join(line.split()) for line in lines]


def _starts_paragraph(previous: str, line: str, width: int) -> bool:
    """True if `line` comes after a sentence, and is indented or the line before ended early."""
    early = columns(previous) + 1 + columns(line.split()[0]) <= width
    indented = not OWN_LINE.match(previous) and indent(line) >= indent(previous) + 2
    return previous.endswith(SENTENCE_ENDS) and (early or indented)


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def join_lines(line: str, following: str, words: set[str], own_hyphen: bool) -> str:
    """Two lines of a paragraph as one, with a space between them except within Chinese or Japanese.

    The hyphen of a divided word is dropped unless it is the word's own: with `own_hyphen`, as part of one of `words`,
    or before a capital; and also where the word without it is one of `words`.
    """
    fragment = re.search(r"([^\W\d_][\w'’-]*)[-\u2010\u00ad]$", line)
    if fragment and following[0].isalpha():
        part, rest = fragment[1].lower(), re.match(r"[\w'’-]+", following)[0].lower()
        own = own_hyphen or f"{part}-{rest}" in words or "-" in part + rest or following[0].isupper()
        own = own or (min(len(part), len(rest)) >= 4 and {part, rest} <= words)
        keeps = own and part + rest not in words and not line.endswith("\u00ad")
        return (line[:-1] + "-" if keeps else line[:-1]) + following
    wide = [unicodedata.east_asian_width(character) in "WF" for character in (line[-1], following[0])]
    return line + ("" if all(wide) else " ") + following


def words_within_lines(lines: Iterable[str]) -> set[str]:
    """The words of a document in lower case, without the parts of words divided at the end of a line."""
    words: set[str] = set()
    divided = False
    for line in lines:
        said = re.findall(r"[^\W\d_][\w'’-]*", line.lower())
        ends_divided = line.rstrip().endswith(HYPHENS)
        words.update(word.strip("-'’") for word in said[divided : len(said) - ends_divided])
        divided = ends_divided
    return words
