"""Who answers in a conversation over a wire: any OpenAI-compatible server, streaming."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from chat.conversation import UNKNOWN, ContextExceeded, ReplyStatus, Sampling, prompt_budget
from inference.keys import find_key, redact
from utils.chat_template import replace_surrogates
from utils.errors import UserError, first_line
from utils.io import read_json

BYTES_A_TOKEN = 3  # of a model whose tokenizer is not here: English has 4 to 5
CONTEXT = re.compile(r"context|too long|too many tokens|maximum.{0,40}(length|tokens)", re.I | re.S)


class ApiEngine:
    """A model behind a server. Tokens are guessed, from bytes."""

    at_once = 8  # answers; a server's own queue does the rest

    def __init__(self, name: str | None, base_url: str, completes: bool = False):
        import openai

        self._key, self._url = find_key(base_url), checked(base_url)
        self._api = openai.OpenAI(api_key=self._key, base_url=base_url, max_retries=2)
        self._errors = (openai.APIError, ValueError)
        self.completes = completes
        self.name, self.context = self._find(name)

    def _find(self, name: str | None) -> tuple[str, int | None]:
        """The name, or where none is given that of the only model that the server has; and its context."""
        try:
            models = models_in(self._api.get("/models", cast_to=object))
        except self._errors as error:
            if not name or not getattr(error, "status_code", None):
                raise self._failed(error) from error
            models = {}  # a server without a list; `transformers serve` answers 500 at times
        if models is None:
            raise UserError(f"--base_url {self._url}: no OpenAI-compatible server; does its address end in /v1?")
        if name is None and len(models) != 1:
            raise UserError(f"--model: which of {', '.join(sorted(models)) or 'none'}?")
        name = name or next(iter(models))
        return name, models.get(name) or context_of_folder(name)

    def room(self, sampling: Sampling) -> int:
        return prompt_budget(self.context, sampling)

    def count(self, messages: list[dict]) -> int:
        return sum(len(message["content"].encode()) for message in messages) // BYTES_A_TOKEN + 1

    def stream(self, messages: list[dict], sampling: Sampling, answer: ReplyStatus) -> Iterator[str]:
        settings = {
            "model": self.name,
            "max_tokens": min(sampling.max_tokens, (self.context or UNKNOWN) - self.count(messages)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stream": True,
        }
        try:
            if self.completes:
                chunks = self._api.completions.create(prompt=messages[-1]["content"], **settings)
            else:
                chunks = self._api.chat.completions.create(messages=messages, **settings)
            with chunks:
                for chunk in chunks:
                    yield from self._pieces(chunk, answer)
        except self._errors as error:
            raise self._failed(error, answer.tokens) from error
        if not answer.ending:
            raise UserError(f"{self._url}: the answer broke off")

    def _pieces(self, chunk, answer: ReplyStatus) -> Iterator[str]:
        for choice in chunk.choices or []:
            piece = choice.text if self.completes else getattr(choice.delta, "content", None)
            answer.ending = choice.finish_reason or answer.ending
            if piece:
                answer.tokens += 1
                yield replace_surrogates(piece)

    def _failed(self, error: Exception, tokens: int = 0) -> UserError:
        """What happened after so many tokens of an answer, in one line and without the key."""
        text = redact(self._key, first_line(error))
        status = getattr(error, "status_code", None)
        if status == 400 and CONTEXT.search(text):
            return ContextExceeded(f"too long for the model, says the server ({text}); send a shorter message")
        if status:
            return UserError(f"{self._url}: the server refuses ({status}): {text}")
        if tokens:
            return UserError(f"{self._url}: the server stopped in the middle of its answer ({text})")
        return UserError(f"{self._url}: no answer: {text}")


def checked(base_url: str) -> str:
    """Raises UserError for what is not the address of a server."""
    try:
        parts = urlsplit(base_url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base_url {base_url}: not the address of a server")
    return base_url


def models_in(answer: object) -> dict[str, int | None] | None:
    """A server's models and, where it tells (vLLM does), the context of each; None for what is no list
    of models."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        return None
    if not all(isinstance(model, dict) and isinstance(model.get("id"), str) for model in data):
        return None
    return {model["id"]: model.get("max_model_len") for model in data}


def context_of_folder(name: str) -> int | None:
    """Of a checkpoint that is served from this machine's disk, whose folder is its server's name for it."""
    config = Path(name) / "config.json"
    if not config.is_file():
        return None
    return read_json(config, "make it again").get("max_position_embeddings")
