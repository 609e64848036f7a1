"""Who answers in process: a checkpoint through transformers, on a GPU or the CPU."""

import torch

from utils.checkpoints import load_checkpoint
from utils.tokens import load_tokenizer


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
    def continuation_logprobs(
        self, prompts: list[str], continuations: list[list[str]]
    ) -> list[list[float]]:
        """log p(continuation | prompt), summed over tokens, for several continuations a prompt.

        A prompt is computed once for all its continuations: they lie one after the other behind it
        in one row, each at the positions right after the prompt, and the attention mask lets none
        see another.
        """
        rows = [
            _Row(self._encode(prompt, options))
            for prompt, options in zip(prompts, continuations, strict=True)
        ]
        width = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        positions = torch.zeros(len(rows), width, dtype=torch.long)
        seen = torch.eye(width, dtype=torch.bool).repeat(
            len(rows), 1, 1
        )  # padding sees itself alone
        for number, row in enumerate(rows):
            length = len(row.ids)
            ids[number, :length] = torch.tensor(row.ids)
            positions[number, :length] = torch.tensor(row.positions)
            seen[number, :length, :length] = row.mask()
        dtype = self.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]
        logits = self.model(
            input_ids=ids.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=mask.to(self.device),
            use_cache=False,
        ).logits
        return [row.logprobs(logits[number]) for number, row in enumerate(rows)]

    def _encode(self, prompt: str, options: list[str]) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt and of each continuation, cut out of the ids of the two together."""
        start = self.tokenizer(prompt)["input_ids"]
        return start, [
            self.tokenizer(prompt + option)["input_ids"][len(start) :] for option in options
        ]

    @torch.inference_mode()
    def complete(
        self,
        prompts: list[str],
        samples: int,
        temperature: float,
        max_tokens: int,
        stop: str,
        seed: int,
    ) -> list[list[str]]:
        """`samples` continuations of every prompt, cut before `stop`; the same for the same seed
        and the same batch of prompts. Temperature 0 is greedy."""
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.device)
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
        texts = [
            text.split(stop)[0]
            for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)
        ]
        return [texts[first : first + samples] for first in range(0, len(texts), samples)]


class _Row:
    """A prompt and its continuations side by side, as the model sees them."""

    def __init__(self, encoded: tuple[list[int], list[list[int]]]):
        self.prompt, self.options = encoded
        self.ids = self.prompt + [i for option in self.options for i in option]
        start = len(self.prompt)
        self.positions = [
            *range(start),
            *(start + k for option in self.options for k in range(len(option))),
        ]
        self.spans = []
        for option in self.options:
            end = (self.spans[-1][1] if self.spans else start) + len(option)
            self.spans.append((end - len(option), end))

    def mask(self) -> torch.Tensor:
        """(length, length), True where the row's token sees the column's."""
        length, start = len(self.ids), len(self.prompt)
        group = torch.zeros(length, dtype=torch.long)
        for number, (first, last) in enumerate(self.spans, 1):
            group[first:last] = number
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return causal & ((torch.arange(length) < start)[None] | (group[:, None] == group[None]))

    def logprobs(self, logits: torch.Tensor) -> list[float]:
        """Sums over each continuation, from (length, vocabulary) logits."""
        sums = []
        for first, last in self.spans:
            # A token is predicted by the one before it: for the first of a continuation the
            # prompt's last.
            before = [len(self.prompt) - 1, *range(first, last - 1)]
            predicted = logits[before].float().log_softmax(-1)
            target = torch.tensor(self.ids[first:last], device=logits.device)
            sums.append(float(predicted.gather(1, target[:, None]).sum()))
        return sums
