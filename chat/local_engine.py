"""Who answers in a conversation in this process: a checkpoint through transformers, word by word."""

import threading
from collections.abc import Iterator

from chat.conversation import UNKNOWN, ReplyStatus, Sampling, prompt_budget
from utils import chat_template


class LocalEngine:
    """A checkpoint. What a question shares with what was computed before (the conversation so far) is not
    computed again."""

    at_once = 1  # answers

    def __init__(self, name: str, completes: bool = False):
        from transformers import DynamicCache

        from inference.local_model import LocalModel

        local = LocalModel(name)
        self.name, self.tokenizer = name, local.tokenizer
        self._model, self._device = local.model, local.device
        self.completes = completes or self.tokenizer.chat_template is None
        self.context: int | None = getattr(self._model.config, "max_position_embeddings", None)
        self._new_cache, self._ids = DynamicCache, []  # the ids that the cache holds
        self._one_at_a_time = threading.Lock()  # a stopped answer of the page ends with its token

    def room(self, sampling: Sampling) -> int:
        return prompt_budget(self.context, sampling)

    def count(self, messages: list[dict]) -> int:
        return len(self.ids(messages))

    def ids(self, messages: list[dict]) -> list[int]:
        if self.completes:
            return self.tokenizer(messages[-1]["content"])["input_ids"]
        return chat_template.encode(self.tokenizer, messages, add_generation_prompt=True)

    def stream(self, messages: list[dict], sampling: Sampling, answer: ReplyStatus) -> Iterator[str]:
        import torch
        from tokenizers.decoders import DecodeStream

        ids, ends = self.ids(messages), self._ends()
        draws = torch.Generator().manual_seed(sampling.seed)
        words = DecodeStream(skip_special_tokens=True)
        most = min(sampling.max_tokens, (self.context or UNKNOWN) - len(ids))
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
        own = [self.tokenizer.eos_token_id] if self.completes else chat_template.stop_token_ids(self.tokenizer)
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
            output = self._model(input_ids=new, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
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
