"""API chat engine: an OpenAI-compatible server, streaming."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import openai

from chat.conversation import UNKNOWN_CONTEXT, ContextExceeded, ReplyStatus, Sampling
from inference.client import print_once
from inference.completions import THINK_TAGS, CallFailed, common_reason, join_parts, strip_reasoning
from inference.keys import Address, check_url, find_key, redact
from inference.server_facts import context_of
from inference.server_habits import Fields, refused_field
from utils.chat_template import replace_surrogates
from utils.errors import UserError, first_line, name_damage
from utils.io import read_json

BYTES_PER_TOKEN = 3  # a cautious estimate, since the tokenizer is unknown: English has 4 to 5
CONTEXT_ERROR = re.compile(r"context|too long|too many tokens|maximum.{0,40}(length|tokens)", re.I | re.S)
API_ERRORS = (openai.APIError, ValueError, RecursionError)  # the latter: a body that is not JSON, or nested too deeply


class ApiEngine:
    """A model on a server. Token counts are estimated from bytes."""

    concurrency = 8  # visitors of the page; more wait

    def __init__(self, name: str | None, base_url: str, complete: bool = False, flag: str = "--model"):
        self._key, self._address = find_key(base_url), Address.parse(check_url(base_url))
        self._url, self._fields = self._address.public, Fields()
        self._api = openai.OpenAI(api_key=self._key, max_retries=2, **self._address.openai_settings())
        self.is_base_model = complete
        self.name, self.context = self._find_model(name, flag)

    def _find_model(self, name: str | None, flag: str) -> tuple[str, int]:
        """Name and context length of the model; without a name, the only model on the server. A second model (another
        `flag` than --model) must be on its list: some servers answer for every name with their only model."""
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
        if flag != "--model" and models and name not in models:
            raise UserError(f"{flag} {name}: the server lists {', '.join(sorted(models))}; name one of them")
        name = name or next(iter(models))
        return name, models.get(name) or context_of_folder(name) or UNKNOWN_CONTEXT

    def with_own_cache(self) -> "ApiEngine":
        """This engine: the server has the cache."""
        return self

    def count_tokens(self, messages: list[dict]) -> int:
        return sum(len(message["content"].encode()) for message in messages) // BYTES_PER_TOKEN + 1

    def stream(self, messages: list[dict], sampling: Sampling, status: ReplyStatus) -> Iterator[str]:
        content = {"prompt": messages[-1]["content"]} if self.is_base_model else {"messages": messages}
        settings = {
            "max_tokens": min(sampling.max_tokens, self.context - self.count_tokens(messages)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        try:
            with self._create(content, settings) as chunks:
                pieces = (piece for chunk in chunks for piece in self._pieces(chunk, status))
                yield from hide_reasoning(pieces, messages[-1]["content"])
        except API_ERRORS as error:
            raise self._user_error(error, status.tokens) from error
        if not status.finish_reason:
            raise UserError(f"{self._url}: the reply is incomplete (no finish_reason)")

    def _create(self, content: dict, settings: dict):
        """The server's stream. Settings that it refuses are renamed or omitted, and one line says so."""
        create = (self._api.completions if self.is_base_model else self._api.chat.completions).create
        while True:
            sent = self._fields.adapt(settings)
            try:
                return create(model=self.name, stream=True, extra_body=sent, **content)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = refused_field(error.status_code, error.response.content, sent)
                if not refused:
                    raise
                try:
                    note = self._fields.change(refused.field, self._redact(str(refused)))
                except CallFailed:
                    raise error from None
                print_once(f"{self._url}: {note}")

    def _pieces(self, chunk, status: ReplyStatus) -> Iterator[str]:
        for choice in first_choices(chunk):
            piece = choice.text if self.is_base_model else join_parts(getattr(choice.delta, "content", None))
            status.finish_reason = common_reason(choice.finish_reason) or status.finish_reason
            if piece:
                status.tokens += 1
                yield replace_surrogates(piece)

    def _redact(self, text: str) -> str:
        return redact(self._key, self._address.redact(text))

    def _user_error(self, error: Exception, tokens: int = 0) -> UserError:
        """One line without the key; `tokens` of the reply arrived before the error."""
        text = self._redact(first_line(error))
        status = getattr(error, "status_code", None)
        if status == 400 and CONTEXT_ERROR.search(text):
            return ContextExceeded(f"message too long for the model ({text}); send a shorter message")
        if status:
            return UserError(f"{self._url}: the server returned status {status}: {text}")
        if tokens:
            return UserError(f"{self._url}: the connection was lost during the reply ({text})")
        return UserError(f"{self._url}: no reply from the server: {text}")


def first_choices(chunk) -> list:
    """The part of a reply's first choice in a chunk of a stream, if it has one. Raises ValueError for anything else."""
    choices = getattr(chunk, "choices", None)
    if choices is None and hasattr(chunk, "choices"):
        return []
    if not isinstance(choices, list) or not all(hasattr(choice, "finish_reason") for choice in choices):
        raise ValueError("the server sends something else than a stream of replies")
    return [choice for choice in choices if not getattr(choice, "index", 0)]


def hide_reasoning(pieces: Iterable[str], prompt: str) -> Iterator[str]:
    """The pieces of a reply without a leading `<think>…</think>`.

    A closing tag alone, the opening one being in the chat template's prompt, comes too late to take the reasoning
    back; the caller takes it out of the conversation.
    """
    start, pieces = "", iter(pieces)
    for piece in pieces:
        start += piece
        answer = strip_reasoning(start, prompt)
        if answer and not could_open(answer):
            break
    if answer := strip_reasoning(start, prompt):
        yield answer
    yield from pieces


def could_open(start: str) -> bool:
    """True if the beginning of a reply may become an opening tag, or is white space."""
    word = start.lstrip().lower()
    return any(f"<{tag}".startswith(word) for tag in THINK_TAGS)


def parse_models(response: object) -> dict[str, int | None] | None:
    """Context length (None where not given; vLLM gives it) by model name; None for a malformed list of models."""
    models = response.get("data") if isinstance(response, dict) else None
    if not isinstance(models, list):
        return None
    if not all(isinstance(model, dict) and isinstance(model.get("id"), str) for model in models):
        return None
    return {model["id"]: context_of(model.get("max_model_len")) for model in models}


def context_of_folder(name: str) -> int | None:
    """Context length of a checkpoint served from this machine, where the model's name is its folder."""
    config = Path(name) / "config.json"
    if not config.is_file():
        return None
    content = read_json(config, "make it again")
    with name_damage(config, "make it again"):
        return context_of(content.get("text_config", content).get("max_position_embeddings"))
