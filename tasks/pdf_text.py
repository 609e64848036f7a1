"""Text of PDF files: paragraphs from lines and their positions, without running heads, feet and page numbers."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.line_structure import HYPHENS, OWN_LINE, SENTENCE_ENDS, join_lines, words_within_lines

MARGIN_LINES = 3  # from the top and from the bottom of a page: where heads, feet and page numbers are
PAGE_NUMBER = re.compile(
    r"\W*(?:(page|p\.|seite|страница)\W*)?(\d{1,4})(?:\s*(?:/|of|von|из)\s*\d+)?\W*", re.IGNORECASE
)
ROMAN = re.compile(r"x{0,3}(?:ix|iv|v?i{1,3}|v)|x{1,3}")
LIGATURES = {
    code: unicodedata.normalize("NFKC", chr(code)) for code in [*range(0xFB00, 0xFB07), *range(0xFB13, 0xFB18)]
}


@dataclass(frozen=True)
class Line:
    text: str
    left: float
    right: float
    top: float
    height: float


Box = list[Line]  # lines without a gap between them
Page = list[Box]


def pdf_text(path: Path) -> tuple[str, str]:
    """Title in the metadata, which may be empty, and text. Raises pdfminer's PSException or PDFException."""
    from pdfminer.pdfdocument import PDFDocument
    from pdfminer.pdfparser import PDFParser
    from pdfminer.utils import decode_text

    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # it warns about colours and boxes
    with open(path, "rb") as file:
        document = PDFDocument(PDFParser(file))
        info = document.info[0] if document.info else {}
        title = info.get("Title", b"")
        pages = list(read_pages(document))
    title = decode_text(title) if isinstance(title, bytes) else ""
    return title, "\n\n".join(read_paragraphs(remove_margins(pages)))


def read_pages(document) -> Iterator[Page]:
    """Boxes of lines in reading order, columns one after the other."""
    from pdfminer.converter import PDFPageAggregator
    from pdfminer.layout import LAParams, LTTextBox
    from pdfminer.pdfinterp import PDFPageInterpreter, PDFResourceManager
    from pdfminer.pdfpage import PDFPage

    resources = PDFResourceManager()
    device = PDFPageAggregator(resources, laparams=LAParams())
    interpreter = PDFPageInterpreter(resources, device)
    for page in PDFPage.create_pages(document):
        interpreter.process_page(page)
        boxes = [[_line(item) for item in box] for box in device.get_result() if isinstance(box, LTTextBox)]
        yield [lines for box in boxes if (lines := [line for line in box if line])]


def _line(item) -> Line | None:
    """A line of pdfminer without the white space around it; None for an empty one."""
    characters = [c for c in item if hasattr(c, "fontname") and c.get_text().strip()]
    text = " ".join(item.get_text().translate(LIGATURES).split())
    if not characters or not text:
        return None
    left, right = min(c.x0 for c in characters), max(c.x1 for c in characters)
    return Line(text, left, right, max(c.y1 for c in characters), max(c.height for c in characters))


def remove_margins(pages: list[Page]) -> list[Page]:
    """The pages without page numbers and without lines that are at the same place of several pages."""
    repeated = Counter(
        key for number, page in enumerate(pages) for key in {_key(line, number) for line in _edges(page)}
    )
    enough = 2 if len(pages) <= 5 else 3  # heads of left and right pages, and of chapters, differ
    kept = []
    for number, page in enumerate(pages):
        edges = _edges(page)
        margin = {
            line for line in edges if _is_page_number(line, number, repeated) or repeated[_key(line, number)] >= enough
        }
        kept.append([lines for box in page if (lines := [line for line in box if line not in margin])])
    return kept


def _edges(page: Page) -> set[Line]:
    lines = sorted((line for box in page for line in box), key=lambda line: -line.top)
    return {*lines[:MARGIN_LINES], *lines[-MARGIN_LINES:]}


def _key(line: Line, page: int) -> tuple:
    """Equal for lines at one height with the same text, up to a page number at its beginning or end."""
    if alone := PAGE_NUMBER.fullmatch(line.text):
        return round(line.top), "", int(alone[2]) - page
    number = re.search(r"^\d{1,4}\b|\b\d{1,4}$", line.text)
    if not number:
        return round(line.top), line.text
    return round(line.top), line.text.replace(number[0], "", 1).strip(), int(number[0]) - page


def _is_page_number(line: Line, page: int, repeated: Counter) -> bool:
    """True for a number that grows with the pages, or that counts them from 1."""
    if ROMAN.fullmatch(line.text):
        return True
    match = PAGE_NUMBER.fullmatch(line.text)
    return bool(match) and (bool(match[1]) or int(match[2]) == page + 1 or repeated[_key(line, page)] >= 2)


def read_paragraphs(pages: list[Page]) -> list[str]:
    """Paragraphs, of one line each; the lines of lists and verse, most of which end early, are kept."""
    words = words_within_lines(line.text for page in pages for box in page for line in box)
    paragraphs: list[str] = []
    last: Line | None = None
    for page in pages:
        for box in page:
            early = [_ends_early(before, line, page) for before, line in zip([last, *box], box, strict=False)]
            ragged = sum(early[1:]) > (len(box) - 1) / 2
            for line, is_early in zip(box, early, strict=True):
                if not last or not _continues(last, line, page, line is box[0], is_early):
                    paragraphs.append(line.text)
                else:
                    paragraphs[-1] = _join(paragraphs[-1], line.text, words, is_early, ragged)
                last = line
    return paragraphs


def _ends_early(before: Line | None, line: Line, page: Page) -> bool:
    """True if the first word of `line` would have fitted into the line before, less a tenth of its column's width, for
    lines that are not justified."""
    if not before:
        return False
    right = max(other.right for box in page for other in box if abs(other.left - line.left) < 2 * line.height)
    character = (before.right - before.left) / len(before.text)
    return before.right + (len(line.text.split()[0]) + 1) * character < before.left + 0.9 * (right - line.left)


def _continues(before: Line, line: Line, page: Page, first_of_box: bool, early: bool) -> bool:
    """True if a line belongs to the paragraph of the line before. A paragraph ends with a sentence, before an indented
    line or after one that ends early, and with its box, unless that is the last of a column or page."""
    sentence_ends = before.text.endswith(SENTENCE_ENDS)
    if not first_of_box:
        return not (sentence_ends and (early or line.left > before.left + 0.5 * line.height))
    follows_below = before.top > line.top and any(before in box for box in page)
    return not follows_below and line.text[0].islower() and not sentence_ends


def _join(paragraph: str, line: str, words: set[str], early: bool, ragged: bool) -> str:
    """Add a line to a paragraph. A hyphen at the end of a line that had room for the rest of the word is its own."""
    if not paragraph.endswith(HYPHENS) and (OWN_LINE.match(line) or (early and ragged)):
        return f"{paragraph}\n{line}"
    return join_lines(paragraph, line, words, own_hyphen=early)
