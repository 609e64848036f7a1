"""TODO inference.loglikelihood."""

from collections.abc import Iterator

import torch

ROW_TOKENS = 2048  # computed at once: attention over them all is still a small part
Encoded = tuple[list[int], list[list[int]]]  # a prompt's ids, and those of its continuations


def pack_rows(encoded: list[Encoded]) -> Iterator[list[Encoded]]:
    """As many prompts with their continuations as fit into ROW_TOKENS, one at least."""
    row, length = [], 0
    for prompt, continuations in encoded:
        more = len(prompt) + sum(map(len, continuations))
        if row and length + more > ROW_TOKENS:
            yield row
            row, length = [], 0
        row.append((prompt, continuations))
        length += more
    yield row


class TokenTree:
    """Texts laid into one row as a tree of tokens: each sees its ancestors and itself, and has their
    number as its position, so that every text is computed as if it stood alone."""

    def __init__(self, encoded: list[Encoded]):
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.parents: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}  # by parent and id
        # Of every continuation, the nodes that predict its tokens, and the tokens. Its last token
        # predicts nothing and is not computed.
        self._predicted: list[list[tuple[list[int], list[int]]]] = []
        for prompt, continuations in encoded:
            end = self._grow(-1, prompt)[-1]
            self._predicted.append([([end, *self._grow(end, ids[:-1])], ids) for ids in continuations])
        self.predicting = sorted({n for group in self._predicted for path, _ in group for n in path})

    def _grow(self, node: int, ids: list[int]) -> list[int]:
        """The nodes of `ids` below `node`; those that are not there yet are added."""
        path = []
        for token in ids:
            child = self._nodes.setdefault((node, token), len(self.ids))
            if child == len(self.ids):
                self.ids.append(token)
                self.positions.append(self.positions[node] + 1 if node >= 0 else 0)
                self.parents.append(node)
            path.append(node := child)
        return path

    def seen(self) -> torch.Tensor:
        """(tokens, tokens), True where the row's token sees the column's."""
        mask = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask

    def sums(self, logits: torch.Tensor) -> list[list[float]]:
        """Of each continuation's tokens, from the (predicting, vocabulary) logits."""
        number = {node: row for row, node in enumerate(self.predicting)}
        pairs = [pair for group in self._predicted for path, ids in group for pair in zip(path, ids, strict=True)]
        rows = torch.tensor([number[node] for node, _ in pairs], device=logits.device)
        tokens = torch.tensor([token for _, token in pairs], device=logits.device)
        logits = logits.float()
        found = iter((logits[rows, tokens] - logits.logsumexp(-1)[rows]).tolist())
        return [[sum(next(found) for _ in ids) for _, ids in group] for group in self._predicted]
