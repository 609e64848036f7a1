"""API keys and addresses of servers: lookup, and redaction from error messages."""

import base64
import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, unquote_plus, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from utils import paths
from utils.errors import UserError
from utils.io import read_text

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"  # sent to local servers
MAX_HOST_LABEL = 63  # characters (RFC 1035)
MIN_SECRET = 4  # characters; a shorter value of a query, such as `v=1`, is no secret


@dataclass(frozen=True)
class Address:
    """A server's address. A user and password, or a query (`?api-key=…`), are sent and never shown."""

    public: str
    user: str  # user:password
    query: str

    @classmethod
    def parse(cls, base_url: str) -> "Address":
        """Addresses without such secrets are kept as they are, also those that are none."""
        try:
            parts = urlsplit(base_url)
        except ValueError:
            return cls(base_url, "", "")
        user, _, host = parts.netloc.rpartition("@")
        if not (user or parts.query or parts.fragment):
            return cls(base_url, "", "")
        return cls(urlunsplit((parts.scheme, host, parts.path, "", "")), user, parts.query)

    @property
    def authorization(self) -> str:
        """Header for user and password (RFC 7617); empty without them."""
        return f"Basic {base64.b64encode(unquote(self.user).encode()).decode()}" if self.user else ""

    def of(self, path: str, of_root: bool = False) -> str:
        """Address of an endpoint such as `/embeddings`; with `of_root` of one outside of /v1, as llama.cpp's /props."""
        base = self.public.rstrip("/")
        return (base.removesuffix("/v1") if of_root else base) + path + (f"?{self.query}" if self.query else "")

    def openai_settings(self) -> dict:
        """Arguments of OpenAI's own client."""
        headers = {"Authorization": self.authorization} if self.user else {}
        return {"base_url": self.public, "default_query": dict(parse_qsl(self.query)), "default_headers": headers}

    def proxy(self) -> str | None:
        """Proxy for this address, from the environment as urllib reads it."""
        parts = urlsplit(self.public)
        return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)

    def redact(self, text: str) -> str:
        """A text without user, password and query, nor what a server could quote of them."""
        user = [self.user, self.user.partition(":")[2]]
        values = [part.partition("=")[2] for part in self.query.split("&")]
        secrets = [*user, self.query, *self.query.split("&"), self.authorization, self.authorization[len("Basic ") :]]
        secrets += [unquote(secret) for secret in user] + [value for value in values if len(value) >= MIN_SECRET]
        secrets += [unquote_plus(value) for value in values if len(value) >= MIN_SECRET]
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


def redact(key: str, text: str) -> str:
    """A server's message on one line of at most 300 characters, with the key replaced by ***."""
    text = text if key == NO_KEY else text.replace(key, "***")
    return " ".join(text.split())[:300]


def check_url(base_url: str) -> str:
    """Return the address. Raises UserError, which shows no part of it but the host, unless it is an http or https
    address with a host whose name a resolver can look for."""
    try:
        parts = urlsplit(base_url)
        parts.port  # noqa: B018  a port that is no number is a ValueError
    except ValueError:
        parts = urlsplit("")
    labels = (parts.hostname or "").rstrip(".").split(".")
    is_name = ":" in labels[0] or all(label and len(label) <= MAX_HOST_LABEL for label in labels)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_name:
        shown = base_url.rpartition("@")[2].partition("?")[0][:100]
        raise UserError(f"--base_url {shown}: not an http address; give one such as http://127.0.0.1:8000/v1")
    return base_url


def find_server(base_url: str | None, key_variable: str = "OPENAI_API_KEY") -> tuple[Address, str]:
    """Address and key of the server: `base_url`, else $OPENAI_BASE_URL, else OpenAI. Raises UserError as find_key."""
    address = Address.parse(check_url(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL))
    return address, find_key(None if address.public == OPENAI_URL else address.public, key_variable)


def find_key(base_url: str | None, variable: str = "OPENAI_API_KEY") -> str:
    """API key from the environment variable; for OPENAI_API_KEY also from the key file. With a `base_url` the key is
    optional. Raises UserError for a missing or malformed key."""
    key = os.environ.get(variable, "").strip()
    if not key and variable == "OPENAI_API_KEY" and paths.key_file().is_file():
        key = read_text(paths.key_file(), "write the key into it").strip()
    if not key and base_url:
        return NO_KEY
    if not key:
        raise UserError(f"no API key: set OPENAI_API_KEY, or write the key into {paths.key_file()}")
    if not key.isprintable() or not key.isascii() or " " in key:
        raise UserError("the API key contains white space or non-ASCII characters; set it again")
    return key
