"""Completions and log-likelihoods of a local checkpoint, through transformers, on a GPU or the CPU."""

import torch

from inference import loglikelihood
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.tokenizer import load_tokenizer


class LocalModel:
    """A causal language model with its tokenizer: bf16 on a GPU, fp32 on the CPU."""

    def __init__(self, name: str):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.model = load_checkpoint(name, dtype, "--model_path").to(self.device).eval()
        self.tokenizer = load_tokenizer(name, "--model_path")
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def continuation_logprobs(self, prompts: list[str], continuations: list[list[str]]) -> list[list[float]]:
        """log p(continuation | prompt), summed over tokens, for several continuations per prompt. Raises UserError
        for a text longer than the model's context."""
        encoded = loglikelihood.encode(self.tokenizer, prompts, continuations)
        self._check_length(loglikelihood.longest_input(encoded))
        return loglikelihood.score(self.model, encoded)

    @torch.inference_mode()
    def complete(
        self, prompts: list[str], samples: int, temperature: float, max_tokens: int, stop: str, seed: int
    ) -> list[list[str]]:
        """`samples` completions of each prompt, cut before `stop`. The same seed and batch of prompts give the same
        completions; temperature 0 is greedy. Raises UserError for a text longer than the model's context."""
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        prompt_length = batch["input_ids"].shape[1]
        self._check_length(prompt_length + max_tokens)
        torch.manual_seed(seed)
        sampling: dict = {"do_sample": False}
        if temperature:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        output = self.model.generate(
            **batch,
            **sampling,
            num_return_sequences=samples,
            max_new_tokens=max_tokens,
            stop_strings=[stop],
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        decoded = self.tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)
        texts = [text.split(stop)[0] for text in decoded]
        return [texts[first : first + samples] for first in range(0, len(texts), samples)]

    def _check_length(self, tokens: int) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and tokens > limit:
            lengths = f"a prompt with its answer takes {tokens} tokens and the model's context is {limit}"
            raise UserError(f"{lengths}; lower --top_k, --chunk_size, --few_shot or --max_tokens")
