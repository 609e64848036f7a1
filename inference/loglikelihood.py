"""Log-likelihood of continuations: over a tree of tokens, with a key-value cache, or by plain forward passes.

Texts with a common beginning can be laid out as a tree in one row, so that each shared token is computed once: a
prompt for all its continuations, and an article's name for all questions about it. Models with attention windows,
recurrent layers or biases by distance compute such a row differently; `choose_scorer` compares before it is used.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from utils import probe
from utils.errors import UserError
from utils.tokenizer import encode_texts

ROW_TOKENS = 2048  # tokens per forward pass; attention over a full row is still a small part of the work
Encoded = tuple[list[int], list[list[int]]]  # ids of a prompt, and ids of each of its continuations


def encode(tokenizer, prompts: list[str], continuations: list[list[str]]) -> list[Encoded]:
    """Ids of each prompt and of its continuations: those of the joined text after the prompt's length, at least one."""
    encoded = []
    for prompt, texts in zip(prompts, continuations, strict=True):
        ids, *joined = encode_texts(tokenizer, [prompt, *(prompt + text for text in texts)])
        ends = [whole[min(len(ids), len(whole) - 1) :] for whole in joined]
        encoded.append((ids, ends))
    return encoded


def longest_input(encoded: list[Encoded]) -> int:
    """Number of tokens of the longest text that the model reads; the last token of a continuation is only predicted."""
    return max(len(prompt) + len(ids) - 1 for prompt, continuations in encoded for ids in continuations)


@dataclass(frozen=True)
class Scorer:
    """Scores texts of at most `tree_tokens` tokens over a tree, and others one prompt at a time by `other`."""

    tree_tokens: float
    other: Callable

    def score(self, model, encoded: list[Encoded]) -> list[list[float]]:
        """log p(continuation | prompt), summed over the continuation's tokens, for each continuation of each prompt."""
        short = [longest_input([one]) <= self.tree_tokens for one in encoded]
        trees = iter(score_trees(model, [one for one, fits in zip(encoded, short, strict=True) if fits]))
        others = iter(self.other(model, [one for one, fits in zip(encoded, short, strict=True) if not fits]))
        return [next(trees if fits else others) for fits in short]


@torch.inference_mode()
def choose_scorer(model, name: str) -> Scorer:
    """The fastest way of scoring that gives the scores of plain forward passes, on texts longer than every attention
    window and, where the tree fails on these, on texts shorter than every window.

    Raises UserError where the logits of a text depend on the tokens after it; `name` is the checkpoint's.
    """
    long = _probe_texts(model, probe.probe_length(model))
    expected = _tensor(_score_alone(model, long))
    tolerance = probe.rounding(model)
    if not probe.agrees(expected, lambda: _tensor(score_plain(model, long)), 10 * tolerance):
        raise UserError(f"--model_path {name}: not a causal language model: its predictions depend on later tokens")

    def holds(score: Callable, encoded: list[Encoded], expected: torch.Tensor) -> bool:
        return probe.agrees(expected, lambda: _tensor(score(model, encoded)), tolerance)

    boundary = probe.rope_boundary(model)
    if boundary is None and holds(score_trees, long, expected):
        return Scorer(float("inf"), score_plain)
    other = score_cached if holds(score_cached, long, expected) else score_plain
    other = other if boundary is None else _score_alone
    shortest = min([*probe.windows(model), *([boundary] if boundary else [])], default=0)
    short = _probe_texts(model, max(shortest, probe.MARGIN))
    if shortest < probe.MARGIN or not holds(score_trees, short, _tensor(_score_alone(model, short))):
        return Scorer(0, other)
    return Scorer(shortest, other)


def score_plain(model, encoded: list[Encoded]) -> list[list[float]]:
    """One text per continuation, in batches that are padded on the right: no token attends to a later one."""
    scores = iter([score for batch in _batches(_texts(encoded)) for score in _score_batch(model, batch)])
    return [[next(scores) for _ in continuations] for _, continuations in encoded]


@torch.inference_mode()
def score_cached(model, encoded: list[Encoded]) -> list[list[float]]:
    """Each prompt once, and every continuation from a copy of its key-value cache."""
    scores = []
    for prompt, continuations in encoded:
        start = model(input_ids=_batch(model, prompt), use_cache=True, logits_to_keep=1)
        row = []
        for ids in continuations:
            logits = start.logits[0, -1:]
            if len(ids) > 1:
                cache = copy.deepcopy(start.past_key_values)
                output = model(input_ids=_batch(model, ids[:-1]), past_key_values=cache, use_cache=True)
                logits = torch.cat([logits, output.logits[0]])
            row.append(_sum_logprobs(logits, ids))
        scores.append(row)
    return scores


@torch.inference_mode()
def score_trees(model, encoded: list[Encoded]) -> list[list[float]]:
    """Rows of texts that share their common beginnings, each token attending to its own text only."""
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


def _score_alone(model, encoded: list[Encoded]) -> list[list[float]]:
    """One text per forward pass."""
    return [[_score_batch(model, [(prompt, ids)])[0] for ids in continuations] for prompt, continuations in encoded]


@torch.inference_mode()
def _score_batch(model, batch: list[tuple[list[int], list[int]]]) -> list[float]:
    """Scores of (prompt, continuation) pairs, one text per row."""
    texts = [prompt + ids[:-1] for prompt, ids in batch]
    longest = max(map(len, texts))
    padded = torch.tensor([text + text[-1:] * (longest - len(text)) for text in texts], device=model.device)
    kept = longest - min(len(prompt) for prompt, _ in batch) + 1  # the logits that predict continuations
    logits = model(input_ids=padded, use_cache=False, logits_to_keep=kept).logits[:, -kept:]
    begins = [len(prompt) - 1 - (longest - kept) for prompt, _ in batch]
    return [_sum_logprobs(row[begin:], ids) for row, begin, (_, ids) in zip(logits, begins, batch, strict=True)]


def _sum_logprobs(logits: torch.Tensor, ids: list[int]) -> float:
    """Log-probability of `ids` from the logits (at least len(ids), vocabulary) that predict them."""
    logprobs = logits[: len(ids)].float().log_softmax(-1)
    return float(logprobs.gather(1, torch.tensor(ids, device=logits.device)[:, None]).sum())


def _texts(encoded: list[Encoded]) -> list[tuple[list[int], list[int]]]:
    return [(prompt, ids) for prompt, continuations in encoded for ids in continuations]


def _batches(texts: list[tuple[list[int], list[int]]]) -> Iterator[list]:
    """Consecutive texts, in batches of at most ROW_TOKENS tokens with padding, or of a single text."""
    batch, longest = [], 0
    for prompt, ids in texts:
        length = len(prompt) + len(ids) - 1
        if batch and (len(batch) + 1) * max(longest, length) > ROW_TOKENS:
            yield batch
            batch, longest = [], 0
        batch.append((prompt, ids))
        longest = max(longest, length)
    if batch:
        yield batch


def _probe_texts(model, length: int) -> list[Encoded]:
    """Two prompts with a common first half, each with two continuations of different lengths, `length` tokens in all."""
    first, second = probe.random_ids(model, length, 1), probe.random_ids(model, length, 2)
    half, end = length // 2, length - 6
    continuations = [first[end:], second[end : end + 2]]
    return [(first[:end], continuations), (first[:half] + second[half:end], continuations)]


def _batch(model, ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids], device=model.device)


def _tensor(scores: list[list[float]]) -> torch.Tensor:
    return torch.tensor([score for row in scores for score in row])


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
