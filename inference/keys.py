"""API keys: lookup, and redaction from error messages."""

import os

from utils import paths
from utils.errors import UserError

NO_KEY = "none"  # sent to local servers


def redact(key: str, text: str) -> str:
    """A server's message on one line of at most 300 characters, with the key replaced by ***."""
    text = text if key == NO_KEY else text.replace(key, "***")
    return " ".join(text.split())[:300]


def find_key(base_url: str | None, variable: str = "OPENAI_API_KEY") -> str:
    """API key from the environment variable; for OPENAI_API_KEY also from the key file. With a `base_url` the key is
    optional. Raises UserError for a missing or malformed key."""
    key = os.environ.get(variable, "").strip()
    if not key and variable == "OPENAI_API_KEY" and paths.key_file().is_file():
        key = paths.key_file().read_text().strip()
    if not key and base_url:
        return NO_KEY
    if not key:
        raise UserError(f"no API key: set OPENAI_API_KEY, or write the key into {paths.key_file()}")
    if not key.isprintable() or not key.isascii() or " " in key:
        raise UserError("the API key contains white space or non-ASCII characters; set it again")
    return key
