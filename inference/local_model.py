"""Completions and log-likelihoods of a local checkpoint, through transformers, on a GPU or the CPU."""

import functools
import math

import torch
from transformers import GenerationConfig

from inference import loglikelihood
from utils import probe
from utils.checkpoint import context_length, load_checkpoint
from utils.errors import UserError
from utils.tokenizer import encode_texts, load_tokenizer

NO_NUMBERS = "gives no numbers (NaN); its weights are damaged, or too large for their type"


class LocalModel:
    """A causal language model with its tokenizer: bf16 on a GPU, fp32 on the CPU.

    Of the checkpoint's generation_config.json only the end tokens are kept, as its penalties, beams and suppressed
    tokens would change greedy and sampled text. Errors name `flag`, the option that gave the name.
    """

    def __init__(self, name: str, flag: str = "--model_path"):
        self.name, self.flag, self.device = name, flag, "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.model = load_checkpoint(name, dtype, flag).to(self.device).eval()
        self.tokenizer = load_tokenizer(name, flag)
        self.end_ids = end_ids(self.model, self.tokenizer)
        self.model.generation_config = GenerationConfig(eos_token_id=self.end_ids, pad_token_id=self.end_ids[0])

    def continuation_logprobs(self, prompts: list[str], continuations: list[list[str]]) -> list[list[float]]:
        """log p(continuation | prompt), summed over tokens, for several continuations per prompt. Raises UserError
        for a text longer than the model's context."""
        encoded = loglikelihood.encode(self.tokenizer, prompts, continuations)
        self._check_length(loglikelihood.longest_input(encoded))
        self.check_ids([ids for prompt, rows in encoded for ids in (prompt, *rows)])
        scores = self._scorer.score(self.model, encoded)
        if any(math.isnan(score) for row in scores for score in row):
            raise UserError(f"{self.flag} {self.name}: {NO_NUMBERS}")
        return scores

    @functools.cached_property
    def _scorer(self) -> loglikelihood.Scorer:
        return loglikelihood.choose_scorer(self.model, self.name)

    def complete(
        self, prompts: list[str], samples: int, temperature: float, max_tokens: int, stop: str, seed: int
    ) -> list[list[str]]:
        """`samples` completions of each prompt, cut before `stop`. The same seed and batch of prompts give the same
        completions; temperature 0 is greedy. Raises UserError for a text longer than the model's context."""
        encoded = encode_texts(self.tokenizer, prompts)
        self._check_length(max(map(len, encoded)) + max_tokens)
        self.check_ids(encoded)
        torch.manual_seed(seed)
        sampling: dict = {"do_sample": False}
        if temperature:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        sampling |= {"num_return_sequences": samples, "max_new_tokens": max_tokens, "stop_strings": [stop]}
        replies = self.generate(encoded, **sampling, tokenizer=self.tokenizer)
        texts = [text.split(stop)[0] for text in self.tokenizer.batch_decode(replies, skip_special_tokens=True)]
        return [texts[first : first + samples] for first in range(0, len(texts), samples)]

    @torch.inference_mode()
    def generate(self, encoded: list[list[int]], **settings: object) -> list[list[int]]:
        """Ids generated after each prompt, in one batch if the model ignores padding; `settings` are generate()'s."""
        batches = [encoded] if self._pads_on_the_left else [[ids] for ids in encoded]
        return [ids for batch in batches for ids in self._generate_batch(batch, settings)]

    def _generate_batch(self, encoded: list[list[int]], settings: dict) -> list[list[int]]:
        longest = max(map(len, encoded))
        padding = [longest - len(ids) for ids in encoded]
        ids = [self.end_ids[:1] * pad + ids for pad, ids in zip(padding, encoded, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        inputs = {"input_ids": ids, "attention_mask": mask}
        batch = {name: torch.tensor(rows, device=self.device) for name, rows in inputs.items()}
        try:
            return self.model.generate(**batch, **settings)[:, longest:].tolist()
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise UserError(f"{self.flag} {self.name}: {NO_NUMBERS}") from error

    @functools.cached_property
    def _pads_on_the_left(self) -> bool:
        return probe.rope_boundary(self.model) is None and probe.pads_on_the_left(self.model)

    def check_ids(self, encoded: list[list[int]]) -> None:
        """Raises UserError for a token that the model has no embedding of."""
        rows, largest = self.model.get_input_embeddings().weight.shape[0], max(max(ids, default=0) for ids in encoded)
        if largest >= rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"{self.flag} {self.name}: the tokenizer has the token {token!r} (id {largest}), the model {rows} "
                "embeddings; save the model's own tokenizer into its folder"
            )

    def _check_length(self, tokens: int) -> None:
        limit = context_length(self.model)
        if limit and tokens > limit:
            lengths = f"a prompt with its answer takes {tokens} tokens and the model's context is {limit}"
            raise UserError(f"{lengths}; lower --top_k, --chunk_size, --few_shot or --max_tokens")


def end_ids(model, tokenizer) -> list[int]:
    """Ids that end a text: the tokenizer's EOS token first, then those of the checkpoint's generation config."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(id for id in [tokenizer.eos_token_id, *configured] if id is not None))
