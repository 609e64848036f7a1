"""Token files -> blocks: packed text, masked documents, or whole conversations."""

import bisect
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.token_file import IGNORE_INDEX, TokenFile, choose_documents

# Number of the random stream; every random choice has its own generator: (seed, stream, epoch or round).
PACKING = 4  # 0 is token_file.py's, 1 to 3 are mixture.py's


@dataclass(frozen=True)
class BlockSettings:
    """Settings for cutting a token file into blocks. `mask_documents` restricts attention to each document."""

    block_size: int
    seed: int = 0
    mask_documents: bool = False
    subsample_ratio: float = 1


class TextBlocks:
    """Blocks cut from consecutive documents; item i is {"input_ids": (block_size,), "labels": the same}, and the
    model shifts the labels. The last block is padded with zeros, which have no labels.

    `ids`: (tokens,). With `ends` (end offsets of the documents, in tokens) documents are masked: items also have
    "position_ids" (block_size,) that restart at 0 with every document, from which transformers derives the
    attention mask, and the first token of a document has no label, since nothing before it predicts it.
    """

    def __init__(self, ids: np.ndarray, block_size: int, ends: np.ndarray | None = None):
        self._ids, self.size, self.ends = ids, block_size, ends

    def __len__(self) -> int:
        """A last block of one token would predict nothing and is left out."""
        return -(-max(len(self._ids) - 1, 0) // self.size)

    def ids(self, block: int) -> np.ndarray:
        ids = self._ids[block * self.size : (block + 1) * self.size]
        return np.pad(ids, (0, self.size - len(ids)))

    def __getitem__(self, block: int) -> dict[str, np.ndarray]:
        ids = self.ids(block).astype(np.int64)
        labels = ids.copy()
        labels[max(len(self._ids) - block * self.size, 0) :] = IGNORE_INDEX
        if self.ends is None:
            return {"input_ids": ids, "labels": labels}
        positions = self.positions(block)
        labels[positions == 0] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def positions(self, block: int) -> np.ndarray:
        """(block_size,) int64: each token's distance from the start of its document, or of the block; the padding
        counts as a document."""
        begin = block * self.size
        first, last = np.searchsorted(self.ends, begin, "right"), np.searchsorted(self.ends, begin + self.size)
        return restarting_positions(self.ends[first:last].astype(np.int64) - begin, self.size)


class ConversationBlocks:
    """Blocks of whole conversations, as many as fit, padded with zeros. Labels are IGNORE_INDEX where the file's
    mask is 0, at the first token of each conversation, and in the padding.

    With `mask_documents` items have position ids, as in TextBlocks.
    """

    def __init__(self, file: TokenFile, settings: BlockSettings):
        chosen = np.flatnonzero(choose_documents(len(file.ends), settings.subsample_ratio, settings.seed))
        begins = np.concatenate([[0], file.ends[:-1]]).astype(np.int64)
        lengths = file.ends.astype(np.int64) - begins
        size = settings.block_size
        if len(chosen) and (longest := lengths[chosen].max()) > size:
            raise UserError(
                f"--block_size {size}: {file.path} has conversations of {longest} tokens; tokenise it again"
            )
        self.file, self.begins, self.lengths = file, begins, lengths
        self.size, self.mask_documents = size, settings.mask_documents
        self.packed = [chosen[block] for block in pack_best_fit(lengths[chosen], size, settings.seed)]

    def __len__(self) -> int:
        return len(self.packed)

    def ids(self, block: int) -> np.ndarray:
        return self._gather(self.file.ids, block)

    def __getitem__(self, block: int) -> dict[str, np.ndarray]:
        ids, mask = self.ids(block).astype(np.int64), self._gather(self.file.mask, block)
        ends = np.cumsum(self.lengths[self.packed[block]])
        positions = restarting_positions(ends[ends < self.size], self.size)
        labels = np.where((mask == 1) & (positions > 0), ids, IGNORE_INDEX)
        item = {"input_ids": ids, "labels": labels}
        return item | {"position_ids": positions} if self.mask_documents else item

    def _gather(self, values: np.ndarray, block: int) -> np.ndarray:
        """(block_size,): the values of a block's conversations, then zeros."""
        row, end = np.zeros(self.size, values.dtype), 0
        for number in self.packed[block]:
            begin, length = self.begins[number], self.lengths[number]
            row[end : end + length] = values[begin : begin + length]
            end += length
        return row

    def fill_rate(self) -> float:
        """Fraction of the blocks' tokens that are not padding."""
        return float(self.lengths[np.concatenate(self.packed)].sum() / (len(self) * self.size))


def blocks_of_file(file: TokenFile, settings: BlockSettings) -> TextBlocks | ConversationBlocks:
    if file.mask is not None:
        return ConversationBlocks(file, settings)
    ids, ends = subsample(file, settings.subsample_ratio, settings.seed)
    return TextBlocks(ids, settings.block_size, ends if settings.mask_documents else None)


def subsample(file: TokenFile, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a fraction of the documents, whole and in file order, and the end offset of each."""
    chosen = choose_documents(len(file.ends), ratio, seed)
    if ratio == 1:
        return file.ids, file.ends
    parts = [ids for ids, kept in zip(file.documents(), chosen, strict=True) if kept]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate([*parts, np.empty(0, file.ids.dtype)]), ends


def restarting_positions(starts: np.ndarray, size: int) -> np.ndarray:
    """(size,) int64 positions that count up from 0 and restart at each of `starts`."""
    last_start = np.zeros(size, np.int64)
    last_start[starts] = starts
    return np.arange(size) - np.maximum.accumulate(last_start)


def pack_best_fit(lengths: np.ndarray, size: int, seed: int) -> list[list[int]]:
    """Best-fit decreasing bin packing of whole documents into blocks of `size` tokens.

    Documents of equal length, and the blocks, come in a seeded random order, so that the first blocks are a
    sample of all. lengths: (documents,), none above `size`. Returns the documents of every block.
    """
    rng = np.random.default_rng([seed, PACKING])
    order = rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    blocks: list[list[int]] = []
    blocks_by_room: list[list[int]] = [[] for _ in range(size + 1)]
    rooms: list[int] = []  # sorted: the free sizes that some block has
    for document in order:
        length = int(lengths[document])
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            block = blocks_by_room[room].pop()
            if not blocks_by_room[room]:
                rooms.pop(place)
        else:
            room, block = size, len(blocks)
            blocks.append([])
        blocks[block].append(int(document))
        room -= length
        if not blocks_by_room[room]:
            bisect.insort(rooms, room)
        blocks_by_room[room].append(block)
    return [blocks[block] for block in rng.permutation(len(blocks))]
