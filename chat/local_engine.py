"""Local chat engine: a checkpoint in this process, streaming token by token with a key-value cache."""

import threading
from collections.abc import Iterator

import torch
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache

from chat.conversation import UNKNOWN_CONTEXT, ReplyStatus, Sampling
from inference.local_model import LocalModel
from utils import chat_template


class LocalEngine:
    """A checkpoint. The prefix that a prompt shares with the previous one is not computed again."""

    concurrency = 1

    def __init__(self, name: str, complete: bool = False):
        local = LocalModel(name)
        self.name, self.tokenizer = name, local.tokenizer
        self._model, self._device = local.model, local.device
        self.is_base_model = complete or self.tokenizer.chat_template is None
        self.context: int = getattr(self._model.config, "max_position_embeddings", None) or UNKNOWN_CONTEXT
        self._cached_ids: list[int] = []
        self._lock = threading.Lock()  # on the web page a stopped reply may still be computing its last token

    def count_tokens(self, messages: list[dict]) -> int:
        return len(self.encode(messages))

    def encode(self, messages: list[dict]) -> list[int]:
        if self.is_base_model:
            return self.tokenizer(messages[-1]["content"])["input_ids"]
        return chat_template.encode(self.tokenizer, messages, add_generation_prompt=True)

    def stream(self, messages: list[dict], sampling: Sampling, status: ReplyStatus) -> Iterator[str]:
        ids, stop_ids = self.encode(messages), self._stop_ids()
        generator = torch.Generator().manual_seed(sampling.seed)
        decoder = DecodeStream(skip_special_tokens=True)
        for _ in range(min(sampling.max_tokens, self.context - len(ids))):
            token = sample_token(self._next_logits(ids), sampling, generator)
            status.tokens += 1
            if token in stop_ids:
                status.finish_reason = "stop"
                return
            ids = [*ids, token]
            if piece := decoder.step(self.tokenizer.backend_tokenizer, token):
                yield piece
        status.finish_reason = "length"

    def _stop_ids(self) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        eos = [self.tokenizer.eos_token_id]
        own = eos if self.is_base_model else chat_template.stop_token_ids(self.tokenizer)
        return {*own, *configured} - {None}

    def _next_logits(self, ids: list[int]) -> torch.Tensor:
        """(vocabulary,) fp32 logits of the token after `ids`, on the CPU."""
        with self._lock, torch.inference_mode():
            cached = common_prefix_length(ids[:-1], self._cached_ids)
            if not cached:
                self._cache = DynamicCache()
            elif cached < len(self._cached_ids):
                self._cache.crop(cached - len(self._cached_ids))  # transformers 5.23: minus the tokens to remove
            self._cached_ids = []  # Ctrl-C during the forward pass leaves layers of different lengths
            new = torch.tensor([ids[cached:]], device=self._device)
            output = self._model(input_ids=new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._cached_ids = list(ids)
            return output.logits[0, -1].float().cpu()


def common_prefix_length(a: list[int], b: list[int]) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:  # the usual case, at the speed of C
        return length
    return next(i for i in range(length) if a[i] != b[i])


def sample_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token id from (vocabulary,) logits by nucleus sampling (Holtzman et al., 2020)."""
    if not sampling.temperature:
        return int(logits.argmax())
    p, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    p[p.cumsum(-1) - p > sampling.top_p] = 0
    return int(order[torch.multinomial(p, 1, generator=generator)])
