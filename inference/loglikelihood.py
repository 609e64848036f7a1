"""Log-likelihood of continuations, computed over a tree of tokens.

Texts with a common beginning are laid out as a tree, so that each shared token is computed once: a prompt for all
its continuations, and an article's name for all questions about it.
"""

from collections.abc import Iterator

import torch

ROW_TOKENS = 2048  # tokens per forward pass; attention over a full row is still a small part of the work
Encoded = tuple[list[int], list[list[int]]]  # ids of a prompt, and ids of each of its continuations


def encode(tokenizer, prompts: list[str], continuations: list[list[str]]) -> list[Encoded]:
    """Ids of each prompt and of its continuations: those of the joined text after the prompt's length."""
    encoded = []
    for prompt, texts in zip(prompts, continuations, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        encoded.append((ids, [tokenizer(prompt + text)["input_ids"][len(ids) :] for text in texts]))
    return encoded


def longest_input(encoded: list[Encoded]) -> int:
    """Number of tokens of the longest text that the model reads; the last token of a continuation is only predicted."""
    return max(len(prompt) + len(ids) - 1 for prompt, continuations in encoded for ids in continuations)


@torch.inference_mode()
def score(model, encoded: list[Encoded]) -> list[list[float]]:
    """log p(continuation | prompt), summed over the continuation's tokens, for each continuation of each prompt."""
    scores: list[list[float]] = []
    for row in pack_rows(encoded):
        tree = TokenTree(row)
        logits = model(
            input_ids=torch.tensor([tree.ids], device=model.device),
            position_ids=torch.tensor([tree.positions], device=model.device),
            attention_mask=_additive_mask(tree.visible(), model),  # 4D masks are used as they are: transformers 5.23
            logits_to_keep=torch.tensor(tree.predicting, device=model.device),
            use_cache=False,
        ).logits
        scores += tree.sum_logprobs(logits[0])
    return scores


def pack_rows(encoded: list[Encoded]) -> Iterator[list[Encoded]]:
    """Group prompts with their continuations into rows of at most ROW_TOKENS tokens, or of a single prompt."""
    row, length = [], 0
    for prompt, continuations in encoded:
        added = len(prompt) + sum(map(len, continuations))
        if row and length + added > ROW_TOKENS:
            yield row
            row, length = [], 0
        row.append((prompt, continuations))
        length += added
    if row:
        yield row


class TokenTree:
    """Texts merged into a tree of tokens and laid out in one row.

    Each token attends to its ancestors and itself, and its position is the number of its ancestors, so that every
    text is computed as if it stood alone.
    """

    def __init__(self, encoded: list[Encoded]):
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.parents: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}  # (parent, token id) -> node
        # For each continuation: the nodes that predict its tokens, and the tokens. Its last token predicts nothing
        # and is not computed.
        self._targets: list[list[tuple[list[int], list[int]]]] = []
        for prompt, continuations in encoded:
            end = self._insert(-1, prompt)[-1]
            self._targets.append([([end, *self._insert(end, ids[:-1])], ids) for ids in continuations])
        self.predicting = sorted({node for group in self._targets for path, _ in group for node in path})

    def visible(self) -> torch.Tensor:
        """(tokens, tokens) bool: True where the row's token attends to the column's."""
        mask = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask

    def sum_logprobs(self, logits: torch.Tensor) -> list[list[float]]:
        """Log-probability of each continuation, from the (predicting, vocabulary) logits."""
        row_of = {node: row for row, node in enumerate(self.predicting)}
        pairs = [pair for group in self._targets for path, ids in group for pair in zip(path, ids, strict=True)]
        rows = torch.tensor([row_of[node] for node, _ in pairs], device=logits.device)
        tokens = torch.tensor([token for _, token in pairs], device=logits.device)
        logits = logits.float()
        logprobs = iter((logits[rows, tokens] - logits.logsumexp(-1)[rows]).tolist())
        return [[sum(next(logprobs) for _ in ids) for _, ids in group] for group in self._targets]

    def _insert(self, node: int, ids: list[int]) -> list[int]:
        """Nodes of the path `ids` below `node`; missing nodes are added."""
        path = []
        for token in ids:
            child = self._nodes.setdefault((node, token), len(self.ids))
            if child == len(self.ids):
                self.ids.append(token)
                self.positions.append(self.positions[node] + 1 if node >= 0 else 0)
                self.parents.append(node)
            path.append(node := child)
        return path


def _additive_mask(visible: torch.Tensor, model) -> torch.Tensor:
    """(1, 1, tokens, tokens): 0 where a token attends to another, else the lowest number of the model's dtype."""
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill(~visible, torch.finfo(model.dtype).min)
    return mask[None, None].to(model.device)
