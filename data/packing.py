"""TODO data.packing."""

import bisect

import numpy as np

from utils.errors import UserError
from utils.token_file import IGNORE_INDEX, TokenFile

# Each random choice has a generator of its own: seed, purpose, and the epoch or round.
DOCUMENTS, PACKING = 0, 4


def cut_blocks(ids: np.ndarray, block_size: int) -> np.ndarray:
    """(tokens,) -> (blocks, block_size), without the last partial block; a view, not a copy."""
    return ids[: len(ids) // block_size * block_size].reshape(-1, block_size)


def choose_documents(number: int, ratio: float, seed: int) -> np.ndarray:
    """(number,) bool: a share of the documents. Nested: those of 0.1 are among those of 0.2."""
    if not 0 < ratio <= 1:
        raise UserError(f"--subsample_ratio {ratio}: above 0, at most 1")
    order = np.random.default_rng([seed, DOCUMENTS]).permutation(number)
    chosen = np.zeros(number, bool)
    chosen[order[: max(1, round(ratio * number))]] = True
    return chosen


def subsample(file: TokenFile, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a share of the documents, whole and in file order, and the end offset of each."""
    chosen = choose_documents(len(file.ends), ratio, seed)
    if ratio == 1:
        return file.ids, file.ends
    parts = [ids for ids, kept in zip(file.documents(), chosen, strict=True) if kept]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate([*parts, np.empty(0, file.ids.dtype)]), ends


class TextBlocks:
    """Blocks cut out of documents that lie one after the other: block i is
    {"input_ids": (block_size,), "labels": the same}; the model shifts the labels itself.

    `ids`: (tokens,). `ends` (of the documents, in tokens) masks documents: there are "position_ids"
    (block_size,) too that begin at 0 with every document, from which transformers keeps attention
    inside it, and no label where a document begins, which nothing before it can tell.
    """

    def __init__(self, ids: np.ndarray, block_size: int, ends: np.ndarray | None = None):
        self.blocks, self.ends = cut_blocks(ids, block_size), ends

    def __len__(self) -> int:
        return len(self.blocks)

    def ids(self, block: int) -> np.ndarray:
        return self.blocks[block]

    def __getitem__(self, block: int) -> dict[str, np.ndarray]:
        ids = self.blocks[block].astype(np.int64)
        if self.ends is None:
            return {"input_ids": ids, "labels": ids}
        positions = self.positions(block)
        labels = np.where(positions == 0, IGNORE_INDEX, ids)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def positions(self, block: int) -> np.ndarray:
        """(block_size,) int64: how far from the begin of its document (or of the block) a token is."""
        size = self.blocks.shape[1]
        begin = block * size
        first, last = np.searchsorted(self.ends, begin, "right"), np.searchsorted(self.ends, begin + size)
        return positions_from(self.ends[first:last].astype(np.int64) - begin, size)


class ConversationBlocks:
    """Blocks of whole conversations, as many in each as fit, and zeros behind them. Labels are IGNORED
    where the file's mask is 0, where a conversation begins, and behind the last one.

    `inside` keeps attention inside a conversation, by position ids, as in Text.
    """

    def __init__(self, file: TokenFile, block_size: int, seed: int, inside: bool, ratio: float = 1):
        chosen = np.flatnonzero(choose_documents(len(file.ends), ratio, seed))
        begins = np.concatenate([[0], file.ends[:-1]]).astype(np.int64)
        lengths = file.ends.astype(np.int64) - begins
        if len(chosen) and (longest := lengths[chosen].max()) > block_size:
            raise UserError(
                f"--block_size {block_size}: {file.path} has conversations of {longest} tokens; "
                "tokenise again with this --block_size"
            )
        self.file, self.begins, self.lengths, self.inside = file, begins, lengths, inside
        self.size = block_size
        self.packed = [chosen[block] for block in pack_best_fit(lengths[chosen], block_size, seed)]

    def __len__(self) -> int:
        return len(self.packed)

    def ids(self, block: int) -> np.ndarray:
        return self._laid_out(self.file.ids, block)

    def __getitem__(self, block: int) -> dict[str, np.ndarray]:
        ids, mask = self.ids(block).astype(np.int64), self._laid_out(self.file.mask, block)
        ends = np.cumsum(self.lengths[self.packed[block]])
        positions = positions_from(ends[ends < self.size], self.size)
        labels = np.where((mask == 1) & (positions > 0), ids, IGNORE_INDEX)
        item = {"input_ids": ids, "labels": labels}
        return item | {"position_ids": positions} if self.inside else item

    def _laid_out(self, values: np.ndarray, block: int) -> np.ndarray:
        """(block_size,): the conversations' part of `values`, one after the other, then zeros."""
        row, end = np.zeros(self.size, values.dtype), 0
        for number in self.packed[block]:
            begin, length = self.begins[number], self.lengths[number]
            row[end : end + length] = values[begin : begin + length]
            end += length
        return row

    def used(self) -> float:
        """The share of the blocks' places that conversations take."""
        return float(self.lengths[np.concatenate(self.packed)].sum() / (len(self) * self.size))


def blocks_of_file(
    file: TokenFile, block_size: int, seed: int = 0, inside: bool = False, ratio: float = 1
) -> TextBlocks | ConversationBlocks:
    """The blocks of a file, or of a share of its documents; `inside` keeps attention inside a document."""
    if file.mask is not None:
        return ConversationBlocks(file, block_size, seed, inside, ratio)
    ids, ends = subsample(file, ratio, seed)
    return TextBlocks(ids, block_size, ends if inside else None)


def positions_from(begins: np.ndarray, size: int) -> np.ndarray:
    """(size,) int64 numbers that count up from 0 and begin again at each of `begins`."""
    starts = np.zeros(size, np.int64)
    starts[begins] = begins
    return np.arange(size) - np.maximum.accumulate(starts)


def pack_best_fit(lengths: np.ndarray, size: int, seed: int) -> list[list[int]]:
    """Put documents into blocks of `size` tokens, each whole: the longest first, into the fullest block
    that still has room (best fit, decreasing). Documents of one length, and the blocks, come in a seeded
    order: the first blocks are a sample of all.

    lengths: (documents,), none above `size`. Returns the documents of every block.
    """
    rng = np.random.default_rng([seed, PACKING])
    order = rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    blocks: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(size + 1)]  # blocks, by the room they have
    rooms: list[int] = []  # those of them that are there, in order
    for document in order:
        length = int(lengths[document])
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            block = with_room[room].pop()
            if not with_room[room]:
                rooms.pop(place)
        else:
            room, block = size, len(blocks)
            blocks.append([])
        blocks[block].append(int(document))
        room -= length
        if not with_room[room]:
            bisect.insort(rooms, room)
        with_room[room].append(block)
    return [blocks[block] for block in rng.permutation(len(blocks))]
