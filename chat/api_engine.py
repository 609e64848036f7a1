"""API chat engine: an OpenAI-compatible server, streaming."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import openai

from chat.conversation import UNKNOWN_CONTEXT, ContextExceeded, ReplyStatus, Sampling
from inference.keys import find_key, redact
from utils.chat_template import replace_surrogates
from utils.errors import UserError, first_line
from utils.io import read_json

BYTES_PER_TOKEN = 3  # a cautious estimate, since the tokenizer is unknown: English has 4 to 5
CONTEXT_ERROR = re.compile(r"context|too long|too many tokens|maximum.{0,40}(length|tokens)", re.I | re.S)
API_ERRORS = (openai.APIError, ValueError)  # ValueError: a body that is not JSON


class ApiEngine:
    """A model on a server. Token counts are estimated from bytes."""

    concurrency = 8  # more wait in Gradio's queue

    def __init__(self, name: str | None, base_url: str, complete: bool = False):
        self._key, self._url = find_key(base_url), check_url(base_url)
        self._api = openai.OpenAI(api_key=self._key, base_url=base_url, max_retries=2)
        self.is_base_model = complete
        self.name, self.context = self._find_model(name)

    def _find_model(self, name: str | None) -> tuple[str, int]:
        """Name and context length of the model; without a name, the only model on the server."""
        try:
            models = parse_models(self._api.get("/models", cast_to=object))
        except API_ERRORS as error:
            if not name or not getattr(error, "status_code", None):
                raise self._user_error(error) from error
            models = {}  # no list of models; `transformers serve` returns status 500 at times
        if models is None:
            raise UserError(f"--base_url {self._url}: no OpenAI-compatible server; does its address end in /v1?")
        if name is None and len(models) != 1:
            raise UserError(f"--model: the server lists {', '.join(sorted(models)) or 'no models'}; name one")
        name = name or next(iter(models))
        return name, models.get(name) or context_of_folder(name) or UNKNOWN_CONTEXT

    def count_tokens(self, messages: list[dict]) -> int:
        return sum(len(message["content"].encode()) for message in messages) // BYTES_PER_TOKEN + 1

    def stream(self, messages: list[dict], sampling: Sampling, status: ReplyStatus) -> Iterator[str]:
        settings = {
            "model": self.name,
            "max_tokens": min(sampling.max_tokens, self.context - self.count_tokens(messages)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stream": True,
        }
        try:
            if self.is_base_model:
                chunks = self._api.completions.create(prompt=messages[-1]["content"], **settings)
            else:
                chunks = self._api.chat.completions.create(messages=messages, **settings)
            with chunks:
                for chunk in chunks:
                    yield from self._pieces(chunk, status)
        except API_ERRORS as error:
            raise self._user_error(error, status.tokens) from error
        if not status.finish_reason:
            raise UserError(f"{self._url}: the reply is incomplete (no finish_reason)")

    def _pieces(self, chunk, status: ReplyStatus) -> Iterator[str]:
        for choice in chunk.choices or []:
            piece = choice.text if self.is_base_model else getattr(choice.delta, "content", None)
            status.finish_reason = choice.finish_reason or status.finish_reason
            if piece:
                status.tokens += 1
                yield replace_surrogates(piece)

    def _user_error(self, error: Exception, tokens: int = 0) -> UserError:
        """One line without the key; `tokens` of the reply arrived before the error."""
        text = redact(self._key, first_line(error))
        status = getattr(error, "status_code", None)
        if status == 400 and CONTEXT_ERROR.search(text):
            return ContextExceeded(f"message too long for the model ({text}); send a shorter message")
        if status:
            return UserError(f"{self._url}: the server returned status {status}: {text}")
        if tokens:
            return UserError(f"{self._url}: the connection was lost during the reply ({text})")
        return UserError(f"{self._url}: no reply from the server: {text}")


def check_url(base_url: str) -> str:
    """Return the address. Raises UserError unless it is an http or https address with a host."""
    try:
        parts = urlsplit(base_url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base_url {base_url}: not an http address; give one such as http://127.0.0.1:8000/v1")
    return base_url


def parse_models(response: object) -> dict[str, int | None] | None:
    """Context length (None where not given; vLLM gives it) by model name; None for a malformed list of models."""
    models = response.get("data") if isinstance(response, dict) else None
    if not isinstance(models, list):
        return None
    if not all(isinstance(model, dict) and isinstance(model.get("id"), str) for model in models):
        return None
    return {model["id"]: model.get("max_model_len") for model in models}


def context_of_folder(name: str) -> int | None:
    """Context length of a checkpoint served from this machine, where the model's name is its folder."""
    config = Path(name) / "config.json"
    if not config.is_file():
        return None
    return read_json(config, "make it again").get("max_position_embeddings")
