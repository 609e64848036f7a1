"""Who answers in a conversation, word by word: a checkpoint in this process, or a server.

Both have `stream(messages, sampling, answer)`, which yields pieces of text and notes in `answer` how it
ends; `count(messages)` and `room(sampling)`, in tokens; and `completes`, where text is continued and
nothing is answered.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from utils import templates
from utils.conversation import fit
from utils.io import UserError, first_line
from utils.keys import find_key

BYTES_A_TOKEN = 3  # of a server's model, whose tokenizer is not here: English has 4 to 5
CONTEXT = re.compile(r"context|too long|too many tokens|maximum.{0,40}(length|tokens)", re.I | re.S)


@dataclass
class Sampling:
    """How words are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0


@dataclass
class Answer:
    """What is known of an answer besides its words. One record an answer: a page has several visitors."""

    ending: str = ""  # stop, or length where it was cut
    tokens: int = 0


class TooLong(UserError):
    """More than the model's context holds."""


def reply(
    speaker, messages: list[dict], sampling: Sampling, answer: Answer, notice: Callable[[str], None]
) -> Iterator[str]:
    """The answer to the last message, in pieces. What does not fit into the context is left out by
    whole turns, the oldest first, and `notice` is told. Raises TooLong where the last message alone
    does not fit, UserError where the server fails."""
    refused = None
    while fitting := fit(messages, speaker.room(sampling), speaker.count):
        kept, dropped = fitting
        with contextlib.closing(speaker.stream(kept, sampling, answer)) as pieces:
            try:
                first = next(pieces, "")
            except TooLong as error:  # the server knows better than our guess of tokens
                refused = error
                speaker.refuse(kept)
                continue
            if dropped:
                notice(f"the model's context is full: the oldest {dropped} of {len(messages) // 2} turns are left out")  # fmt: skip
            yield first
            yield from pieces
            return
    raise refused or TooLong(
        f"the message has {speaker.count(messages[-1:]):,} tokens, and the model's context has room for "
        f"{speaker.room(sampling):,}; send a shorter one"
    )


class LocalSpeaker:
    """A checkpoint through transformers, on a GPU in bf16 or on the CPU in fp32. What a question shares
    with what was computed before (the conversation so far) is not computed again."""

    def __init__(self, name: str, completes: bool = False):
        import torch
        from transformers import DynamicCache

        from utils.checkpoints import load_checkpoint
        from utils.tokens import load_tokenizer

        self.name, self.tokenizer = name, load_tokenizer(name, "--model_path")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._model = load_checkpoint(name, dtype, "--model_path").to(self._device).eval()
        self.completes = completes or self.tokenizer.chat_template is None
        self.context: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self._new_cache, self._ids = DynamicCache, []  # the ids that the cache holds
        self._one_at_a_time = threading.Lock()  # a stopped answer of the page ends with its token

    def room(self, sampling: Sampling) -> int:
        """Tokens that a question may have: the rest, up to a quarter, is the answer's."""
        return _room(self.context or 1 << 30, sampling)

    def count(self, messages: list[dict]) -> int:
        return len(self.ids(messages))

    def ids(self, messages: list[dict]) -> list[int]:
        if self.completes:
            return self.tokenizer(messages[-1]["content"])["input_ids"]
        return templates.as_ids(self.tokenizer, messages, to_be_answered=True)

    def stream(self, messages: list[dict], sampling: Sampling, answer: Answer) -> Iterator[str]:
        import torch
        from tokenizers.decoders import DecodeStream

        ids, ends = self.ids(messages), self._ends()
        draws = torch.Generator().manual_seed(sampling.seed)
        words = DecodeStream(skip_special_tokens=True)
        most = min(sampling.max_tokens, (self.context or 1 << 30) - len(ids))
        for _ in range(most):
            token = _draw(self._next_logits(ids), sampling, draws)
            answer.tokens += 1
            if token in ends:
                answer.ending = "stop"
                return
            ids = [*ids, token]
            if piece := words.step(self.tokenizer.backend_tokenizer, token):
                yield piece
        answer.ending = "length"

    def _ends(self) -> set[int]:
        named = self._model.generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        own = [self.tokenizer.eos_token_id] if self.completes else templates.end_ids(self.tokenizer)
        return {*own, *named} - {None}

    def _next_logits(self, ids: list[int]):
        """(vocabulary,) fp32 logits of the token after `ids`, from the cache as far as it goes."""
        with self._one_at_a_time:
            return self._computed(ids)

    def _computed(self, ids: list[int]):
        import torch

        known = _common(ids[:-1], self._ids)
        if not known:
            self._cache = self._new_cache()
        elif known < len(self._ids):
            self._cache.crop(known - len(self._ids))
        self._ids = []  # a stop in the middle of a pass leaves layers of different lengths
        with torch.inference_mode():
            new = torch.tensor([ids[known:]], device=self._device)
            output = self._model(input_ids=new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)  # fmt: skip
        self._ids = list(ids)
        return output.logits[0, -1].float().cpu()


def _common(some: list[int], others: list[int]) -> int:
    """How many ids both begin with."""
    length = min(len(some), len(others))
    if some[:length] == others[:length]:
        return length
    return next(i for i in range(length) if some[i] != others[i])


def _draw(logits, sampling: Sampling, draws) -> int:
    """A token of the likeliest ones that have `top_p` together (Holtzman et al., 2020)."""
    import torch

    if not sampling.temperature:
        return int(logits.argmax())
    p, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    p[p.cumsum(-1) - p > sampling.top_p] = 0
    return int(order[torch.multinomial(p, 1, generator=draws)])


def _room(context: int, sampling: Sampling) -> int:
    return context - min(sampling.max_tokens, context // 4)


class ServedSpeaker:
    """A model behind an OpenAI-compatible server. Tokens are guessed, from bytes."""

    def __init__(self, name: str | None, base_url: str, completes: bool = False):
        import openai

        key = find_key(base_url)
        self._api = openai.OpenAI(api_key=key, base_url=base_url, max_retries=2)
        self._key, self._url, self._errors = key, base_url, (openai.APIError, ValueError)
        self.completes = completes
        self.context: int | None = None
        self._most = (
            1 << 30
        )  # tokens of a question that the server does not refuse, as far as is known
        self.name = self._find(name)

    def _find(self, name: str | None) -> str:
        """The name, or where none is given that of the only model that the server has."""
        try:
            listed = {model.id: model for model in self._api.models.list().data}
        except self._errors as error:
            if getattr(error, "status_code", None) and name:
                return name  # a server without a list; `transformers serve` answers 500 at times
            raise self._failed(error) from error
        if name is None and len(listed) != 1:
            raise UserError(f"--model: which of {', '.join(sorted(listed)) or 'none'}?")
        name = name or next(iter(listed))
        extra = getattr(listed.get(name), "model_extra", None) or {}
        self.context = extra.get("max_model_len")  # vLLM tells
        return name

    def room(self, sampling: Sampling) -> int:
        return min(self._most, _room(self.context or 1 << 30, sampling))

    def refuse(self, messages: list[dict]) -> None:
        """The server said that these are too many tokens: from now on fewer are sent."""
        self._most = self.count(messages) - 1

    def count(self, messages: list[dict]) -> int:
        return (
            sum(len(m["content"].encode("utf-8", "replace")) for m in messages) // BYTES_A_TOKEN + 1
        )

    def stream(self, messages: list[dict], sampling: Sampling, answer: Answer) -> Iterator[str]:
        settings = {
            "model": self.name,
            "max_tokens": sampling.max_tokens,
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

    def _pieces(self, chunk, answer: Answer) -> Iterator[str]:
        for choice in chunk.choices or []:
            piece = choice.text if self.completes else choice.delta.content
            answer.ending = choice.finish_reason or answer.ending
            if piece:
                answer.tokens += 1
                yield piece

    def _failed(self, error: Exception, tokens: int = 0) -> UserError:
        """What happened after so many tokens of an answer, in one line and without the key."""
        text = first_line(error).replace(self._key, "***")[:300]
        status = getattr(error, "status_code", None)
        if status == 400 and CONTEXT.search(text):
            return TooLong(
                f"too long for the model, says the server ({text}); send a shorter message"
            )
        if status is None and tokens:
            return UserError(f"{self._url}: the server stopped in the middle of its answer ({text})")  # fmt: skip
        where = (
            f"{self._url}: the server refuses ({status})" if status else f"{self._url}: no answer"
        )
        return UserError(f"{where}: {text}")
