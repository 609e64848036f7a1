"""Parser of JSON from servers and users: anything it refuses is a ValueError, and every text it returns can be written."""

import json
import re
from typing import Any

MAX_DIGITS = 309  # of the largest float
HALF_PAIRS = re.compile("[\ud800-\udfff]")  # surrogates; those in pairs have become one character
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """A JSON value, with ? for half of a surrogate pair, which UTF-8 cannot write. Raises ValueError for invalid
    JSON or UTF-8, and for what is nested too deeply."""
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        value = json.loads(text, parse_int=parse_int)
        return mend(value) if ESCAPED_SURROGATE.search(text) else value
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_int(digits: str) -> int | float:
    """A whole number; infinity for one beyond the largest float, with which no arithmetic is possible."""
    return int(digits) if len(digits) < MAX_DIGITS else float(digits)


def mend(value: Any) -> Any:
    """A value with ? for half of a surrogate pair in its texts and keys."""
    if isinstance(value, str):
        return HALF_PAIRS.sub("?", value)
    if isinstance(value, list):
        return [mend(item) for item in value]
    if isinstance(value, dict):
        return {mend(key): mend(item) for key, item in value.items()}
    return value
