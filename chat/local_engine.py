"""Local chat engine: a checkpoint in this process, streaming token by token with a key-value cache."""

import copy
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from chat.conversation import UNKNOWN_CONTEXT, ReplyStatus, Sampling
from inference.local_model import NO_NUMBERS, LocalModel
from utils import chat_template, paths, probe
from utils.checkpoint import context_length
from utils.errors import UserError
from utils.io import read_json
from utils.tokenizer import encode_texts

GB = 1e9
LEAST_TEMPERATURE = 1e-6  # below it, logits divided by it may be infinite


class LocalEngine:
    """A checkpoint. The prefix that a prompt shares with the previous one is not computed again, where a probe has
    shown that the model's cache gives the logits of plain forward passes."""

    concurrency = 1

    def __init__(self, name: str, complete: bool = False, flag: str = "--model_path"):
        self._local = LocalModel(name, flag)
        self.name, self.tokenizer, self._model = name, self._local.tokenizer, self._local.model
        self.is_base_model = complete or self.tokenizer.chat_template is None
        self.context: int = context_length(self._model) or UNKNOWN_CONTEXT
        self._reuse, self._rope_boundary = probe.cache_reuse(self._model), probe.rope_boundary(self._model)
        self._cached_ids: list[int] = []
        self._lock = threading.Lock()  # on the web page a stopped reply may still be computing its last token

    def with_own_cache(self) -> "LocalEngine":
        """The same weights with a cache of its own."""
        other = copy.copy(self)
        other._cached_ids = []
        return other

    def count_tokens(self, messages: list[dict]) -> int:
        return len(self.encode(messages))

    def encode(self, messages: list[dict]) -> list[int]:
        if self.is_base_model:
            return encode_texts(self.tokenizer, [messages[-1]["content"]])[0]
        return chat_template.encode(self.tokenizer, messages, add_generation_prompt=True)

    def stream(self, messages: list[dict], sampling: Sampling, status: ReplyStatus) -> Iterator[str]:
        prompt, stop_ids = self.encode(messages), self._stop_ids()
        self._local.check_ids([prompt])
        generator = torch.Generator().manual_seed(sampling.seed)
        reply = StreamedText(self.tokenizer)
        status.finish_reason = "length"
        for _ in range(min(sampling.max_tokens, self.context - len(prompt))):
            logits = self._next_logits(prompt + reply.ids)
            if logits.isnan().any():
                raise UserError(f"{self.name}: {NO_NUMBERS}")
            token = sample_token(logits, sampling, generator)
            status.tokens += 1
            if token in stop_ids:
                status.finish_reason = "stop"
                break
            if piece := reply.add(token):
                yield piece
        if rest := reply.rest():
            yield rest

    def _stop_ids(self) -> set[int]:
        return {*self._local.end_ids, *([] if self.is_base_model else chat_template.stop_token_ids(self.tokenizer))}

    def _next_logits(self, ids: list[int]) -> torch.Tensor:
        """(tokens of the tokenizer,) fp32 logits of the token after `ids`, on the CPU."""
        with self._lock, torch.inference_mode():
            cached = self._reusable_length(ids)
            if not cached:
                self._cache = None
            elif cached < len(self._cached_ids):
                self._cache.crop(cached - len(self._cached_ids))  # transformers 5.23: minus the tokens to remove
            self._cached_ids = []  # Ctrl-C during the forward pass leaves layers of different lengths
            new, keep = torch.tensor([ids[cached:]], device=self._model.device), self._reuse != "none"
            settings = {"past_key_values": self._cache} if cached else {}
            output = self._model(input_ids=new, use_cache=keep, logits_to_keep=1, **settings)
            if keep:
                self._cache, self._cached_ids = output.past_key_values, list(ids)
            return output.logits[0, -1, : len(self.tokenizer)].float().cpu()

    def _reusable_length(self, ids: list[int]) -> int:
        """Number of tokens whose keys and values are taken from the cache."""
        cached = common_prefix_length(ids[:-1], self._cached_ids)
        boundary = self._rope_boundary
        if boundary is not None and (len(self._cached_ids) > boundary) != (len(ids) > boundary):
            return 0
        return cached if self._reuse == "any" or cached == len(self._cached_ids) else 0


def memory_notice(name: str) -> str | None:
    """A sentence with both sizes if the weights of a checkpoint folder may not fit into the free memory."""
    config = Path(paths.resolve_checkpoint(name)) / "config.json"
    if not config.is_file():
        return None  # on the Hub
    content = read_json(config, "download it again")
    saved = content.get("dtype") or content.get("torch_dtype") or "float32"
    stored_bytes = 4 if saved == "float32" else 2
    in_memory_bytes = 2 if torch.cuda.is_available() else 4
    files = sum(size for _, size, _ in (row for row in paths.weights_state(name) if len(row) == 3))
    needed, free = files * in_memory_bytes / stored_bytes, free_memory()
    if free is None or needed < free:
        return None
    return f"{name}: its weights take {needed / GB:.1f} GB of memory, {free / GB:.1f} GB are free; it may not fit"


def free_memory() -> int | None:
    """Free bytes of the GPU, else of the machine; None where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return int(found[1]) * 1024 if found else None


class StreamedText:
    """Text of a growing list of ids, in pieces that hold whole characters. The pieces together are the text that the
    tokenizer decodes from all ids: a piece is what a new id adds to the text of the ids since the last whole piece."""

    def __init__(self, tokenizer):
        self._tokenizer, self.ids = tokenizer, []
        self._begin = self._shown = 0  # ids before `_begin` are no longer decoded; the text up to `_shown` was returned

    def add(self, token: int) -> str:
        """The text that `token` completes; empty inside a character of several tokens."""
        self.ids.append(token)
        whole = self._decode(len(self.ids))
        before = self._decode(self._shown)
        if whole.endswith("\ufffd") or not whole.startswith(before) or len(whole) == len(before):
            return ""
        self._begin, self._shown = self._shown, len(self.ids)
        return whole[len(before) :]

    def rest(self) -> str:
        """The remaining text, with replacement characters for an incomplete one."""
        return self._decode(len(self.ids))[len(self._decode(self._shown)) :]

    def _decode(self, end: int) -> str:
        return self._tokenizer.decode(self.ids[self._begin : end], skip_special_tokens=True)


def common_prefix_length(a: list[int], b: list[int]) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:  # the usual case, at the speed of C
        return length
    return next(i for i in range(length) if a[i] != b[i])


def sample_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token id from (vocabulary,) logits by nucleus sampling (Holtzman et al., 2020)."""
    if sampling.temperature < LEAST_TEMPERATURE:
        return int(logits.argmax())
    p, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    p[p.cumsum(-1) - p > sampling.top_p] = 0
    return int(order[torch.multinomial(p, 1, generator=generator)])
