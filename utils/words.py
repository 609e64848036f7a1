"""Words of a text in any script, for n-grams, duplicates and search."""

import functools
import re
import sys
import unicodedata
from collections.abc import Iterable

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, Tai, Balinese, Javanese, kana, bopomofo, Han. Each of
# their characters counts as a word, as is usual for n-grams of Chinese; a whole sentence would be one word otherwise.
NO_SPACES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F)),
    *((0x2E80, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA980, 0xA9DF), (0xF900, 0xFAFF)),
    *((0xFF66, 0xFF9D), (0x1AFF0, 0x1B16F), (0x20000, 0x323AF)),
)
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline; a terminal obeys them
JOINERS = "\u200c\u200d"  # inside words of Persian and of Indic scripts


def without_controls(text: str) -> str:
    return CONTROL_CHARACTERS.sub("", text)


def words_of(text: str, inside: str = "") -> list[str]:
    """The words of a text in lower case and NFC. Characters of `inside` count as letters; combining marks belong to
    their letter; in scripts without spaces every character is a word."""
    text = unicodedata.normalize("NFC", text).lower()
    if not re.search(f"[{_unspaced_letters()}{_combining_marks()}]", "".join(set(text))):
        return re.findall(rf"[\w{re.escape(inside)}]+", text)  # three times as fast
    return re.findall(word_pattern(inside), text)


@functools.cache
def word_pattern(inside: str = "", shortest: int = 1) -> str:
    """A regular expression for words; those of scripts with spaces have at least `shortest` characters."""
    single, marks = _unspaced_letters(), _combining_marks()
    if shortest > 1:
        return rf"[{single}][{marks}]*|(?:[^\W{single}]|[{marks}]){{{shortest},}}"
    first = rf"[^\W{single}]+|[{re.escape(inside)}]" if inside else rf"[^\W{single}]+"
    return rf"[{single}][{marks}]*|(?:{first})(?:[^\W{single}]+|[{re.escape(inside)}{marks}]+)*"


def has_unspaced_script(text: str) -> bool:
    """True if a text has letters of a script without spaces."""
    return bool(re.search(f"[{_unspaced_letters()}]", "".join(set(text))))


@functools.cache
def _unspaced_letters() -> str:
    codes = (code for begin, end in NO_SPACES for code in range(begin, end + 1))
    return _character_class(code for code in codes if chr(code).isalnum() and not chr(code).isdecimal())


@functools.cache
def _combining_marks() -> str:
    """A character class of all combining marks, which re's \\w leaves out, and of JOINERS."""
    codes = (code for code in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M")
    return _character_class(codes) + JOINERS


def _character_class(codes: Iterable[int]) -> str:
    """Code points in ascending order as ranges of a character class."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(begin)}-{chr(end)}" for begin, end in ranges)
