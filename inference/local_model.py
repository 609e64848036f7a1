"""Who answers in process: a checkpoint through transformers, on a GPU or the CPU."""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from inference.loglikelihood import TokenTree, pack_rows
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.tokenizer import load_tokenizer

QUERIES = 64  # of attention in blocks
BLOCKS = "blocks"


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

    @torch.inference_mode()
    def continuation_logprobs(self, prompts: list[str], continuations: list[list[str]]) -> list[list[float]]:
        """log p(continuation | prompt), summed over tokens, for several continuations a prompt.

        What texts have in common from their beginning on is computed once: a prompt for all its
        continuations, and the article's name for all questions about it.
        """
        sums: list[list[float]] = []
        usual = self.model.config._attn_implementation
        if self.device == "cpu":
            self.model.set_attn_implementation(BLOCKS)
        encoded = [self._encode(*pair) for pair in zip(prompts, continuations, strict=True)]
        for row in pack_rows(encoded):
            tree = TokenTree(row)
            self._check_length(1 + max(tree.positions))
            logits = self.model(
                input_ids=torch.tensor([tree.ids]).to(self.device),
                position_ids=torch.tensor([tree.positions]).to(self.device),
                attention_mask=self._additive(tree.seen()),
                logits_to_keep=torch.tensor(tree.predicting).to(self.device),
                use_cache=False,
            ).logits
            sums += tree.sums(logits[0])
        self.model.set_attn_implementation(usual)
        return sums

    def _check_length(self, tokens: int) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most and tokens > most:
            raise UserError(
                f"a prompt and its answer take {tokens} tokens and the model reads {most}: smaller --top_k, --chunk_size, --few_shot or --max_tokens"
            )

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        """(1, 1, tokens, tokens): 0 where a token sees another, else the lowest number."""
        lowest = torch.finfo(self.model.dtype).min
        mask = torch.zeros(seen.shape, dtype=self.model.dtype).masked_fill(~seen, lowest)
        return mask[None, None].to(self.device)

    def _encode(self, prompt: str, options: list[str]) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt and of each continuation, cut out of the ids of the two together."""
        start = self.tokenizer(prompt)["input_ids"]
        return start, [self.tokenizer(prompt + option)["input_ids"][len(start) :] for option in options]

    @torch.inference_mode()
    def complete(
        self, prompts: list[str], samples: int, temperature: float, max_tokens: int, stop: str, seed: int
    ) -> list[list[str]]:
        """`samples` continuations of every prompt, cut before `stop`; the same for the same seed
        and the same batch of prompts. Temperature 0 is greedy."""
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
        self._check_length(batch["input_ids"].shape[1] + max_tokens)
        torch.manual_seed(seed)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        output = self.model.generate(
            **batch,
            **sampling,
            num_return_sequences=samples,
            max_new_tokens=max_tokens,
            stop_strings=[stop],
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        new = output[:, batch["input_ids"].shape[1] :]
        texts = [text.split(stop)[0] for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return [texts[first : first + samples] for first in range(0, len(texts), samples)]


def attention_in_blocks(module, query, key, value, attention_mask, scaling=None, **settings):
    """Attention that computes, for QUERIES tokens at a time, only the keys that one of them sees: of
    questions side by side each sees but a tenth of the row. On a CPU that saves a sixth of the time.

    query: (1, heads, tokens, width); key, value: with as many heads or a part of them; attention_mask:
    (1, 1, tokens, tokens), 0 where a token is seen. The form that transformers asks for, which wants
    (1, tokens, heads, width) and the weights, or None.
    """
    outputs = []
    for mask in attention_mask.split(QUERIES, 2):
        first = QUERIES * len(outputs)
        keys = (mask[0, 0] == 0).any(0).nonzero()[:, 0]
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, first : first + QUERIES],
                key[:, :, keys],
                value[:, :, keys],
                attn_mask=mask[..., keys],
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2), None


AttentionInterface.register(BLOCKS, attention_in_blocks)
