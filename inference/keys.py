"""The API key, which never reaches a log, a file or an error text."""

import os

from utils import paths
from utils.errors import UserError

NO_KEY = "none"  # what a local server is told


def redact(key: str, text: str) -> str:
    """A server's words on one short line, without the key."""
    text = text if key == NO_KEY else text.replace(key, "***")
    return " ".join(text.split())[:300]


def find_key(base_url: str | None, variable: str = "OPENAI_API_KEY") -> str:
    """The API key: $OPENAI_API_KEY, else the key file; another service's is its `variable` alone. A
    local server needs none."""
    key = os.environ.get(variable, "").strip()
    if not key and variable == "OPENAI_API_KEY" and paths.key_file().is_file():
        key = paths.key_file().read_text().strip()
    if not key and base_url:
        return NO_KEY
    if not key:
        raise UserError(f"no API key: set OPENAI_API_KEY, or write the key into {paths.key_file()}")
    if not key.isprintable() or not key.isascii() or " " in key:
        raise UserError("the API key has white space or odd characters in it; set it again")
    return key
