"""The datasets a model trains on, and the plan that says which block comes when.

Run it to look at them:

    python data/cptdata.py                                   # QuALITY, what step 4 will train on
    python data/cptdata.py --task_name example --model_name ckpts/SmolLM2-135M-Instruct --blocks 3
"""

import argparse
import bisect
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.generation.methods import METHODS
from utils import paths
from utils.io import UserError, run
from utils.token_file import TokenFile

SYNTHETIC, REPLAY = 0, 1
IGNORED = -100  # a label that counts for nothing, as torch and transformers have it
SOURCES = ("synthetic", "replay")
INSTRUCT = "instruct"  # the --task_name of conversations
# Each random choice has a generator of its own: seed, purpose, and the epoch or round.
DOCUMENTS, SYNTHETIC_ORDER, REPLAY_ORDER, MIX, PACKING = range(5)


@dataclass(frozen=True)
class Plan:
    """Which block comes when, for the whole run; a pure function of its arguments.

    `source`: (blocks,) SYNTHETIC or REPLAY; `block`: (blocks,) index into that source's blocks.
    """

    source: np.ndarray
    block: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def replay_share(self) -> float:
        return float((self.source == REPLAY).mean())


def make_plan(synthetic: int, replay: int, epochs: float, rr: float, bs: int, seed: int) -> Plan:
    """Plan `epochs` epochs over `synthetic` blocks, with the share `rr` of replay blocks among all.

    Every synthetic block comes once an epoch; replay is added to them, spread evenly at random, and
    none comes again before all `replay` blocks were used. The last step is filled up to `bs` blocks
    with replay, or (where there is none) with the beginning of one more epoch.
    """
    if not 0 <= rr < 1:
        raise UserError(f"--rr {rr}: a share of the blocks, from 0 to below 1")
    if not synthetic:
        raise UserError("the training text is shorter than one block; give a smaller --block_size")
    if rr and not replay:
        raise UserError(
            "the replay text is shorter than one block; give a smaller --block_size or --rr 0"
        )
    wanted = max(1, round(epochs * synthetic))
    added = round(wanted * rr / (1 - rr))
    if wanted + added < bs:
        raise UserError(
            f"--bs {bs}: the run has {wanted + added} blocks in all; give a smaller --bs or --block_size"
        )
    rest = -(wanted + added) % bs
    added, wanted = (added + rest, wanted) if rr else (0, wanted + rest)
    source = np.zeros(wanted + added, np.uint8)
    source[_replay_places(wanted, added, seed)] = REPLAY
    block = np.empty(len(source), np.int64)
    block[source == SYNTHETIC] = _rounds(synthetic, wanted, seed, SYNTHETIC_ORDER)
    block[source == REPLAY] = _rounds(replay, added, seed, REPLAY_ORDER)
    return Plan(source, block)


def _replay_places(wanted: int, added: int, seed: int) -> np.ndarray:
    """`added` of all places, one at random in each of `added` stretches of equal length."""
    edges = np.linspace(0, wanted + added, added + 1).astype(np.int64)
    return np.random.default_rng([seed, MIX]).integers(edges[:-1], edges[1:])


def _rounds(blocks: int, number: int, seed: int, purpose: int) -> np.ndarray:
    """The first `number` of: all blocks in one random order, then all in another, and so on."""
    rounds = -(-number // blocks) if number else 0
    orders = [np.random.default_rng([seed, purpose, r]).permutation(blocks) for r in range(rounds)]
    return np.concatenate([*orders, np.empty(0, np.int64)])[:number].astype(np.int64)


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


class Text:
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
        labels = np.where(positions == 0, IGNORED, ids)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def positions(self, block: int) -> np.ndarray:
        """(block_size,) int64: how far from the begin of its document (or of the block) a token is."""
        size = self.blocks.shape[1]
        begin = block * size
        first, last = np.searchsorted(self.ends, begin, "right"), np.searchsorted(self.ends, begin + size)  # fmt: skip
        return count_from(self.ends[first:last].astype(np.int64) - begin, size)


class Conversations:
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
        self.packed = [chosen[block] for block in pack(lengths[chosen], block_size, seed)]

    def __len__(self) -> int:
        return len(self.packed)

    def ids(self, block: int) -> np.ndarray:
        return self._laid_out(self.file.ids, block)

    def __getitem__(self, block: int) -> dict[str, np.ndarray]:
        ids, mask = self.ids(block).astype(np.int64), self._laid_out(self.file.mask, block)
        ends = np.cumsum(self.lengths[self.packed[block]])
        positions = count_from(ends[ends < self.size], self.size)
        labels = np.where((mask == 1) & (positions > 0), ids, IGNORED)
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


def source_of(
    file: TokenFile, block_size: int, seed: int = 0, inside: bool = False, ratio: float = 1
) -> Text | Conversations:
    """The blocks of a file, or of a share of its documents; `inside` keeps attention inside a document."""
    if file.mask is not None:
        return Conversations(file, block_size, seed, inside, ratio)
    ids, ends = subsample(file, ratio, seed)
    return Text(ids, block_size, ends if inside else None)


def count_from(begins: np.ndarray, size: int) -> np.ndarray:
    """(size,) int64 numbers that count up from 0 and begin again at each of `begins`."""
    starts = np.zeros(size, np.int64)
    starts[begins] = begins
    return np.arange(size) - np.maximum.accumulate(starts)


def pack(lengths: np.ndarray, size: int, seed: int) -> list[list[int]]:
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


class Blocks:
    """A map-style dataset of the blocks of two sources (Text or Conversations; of the replay, Text) in
    the order of a plan."""

    def __init__(self, plan: Plan, synthetic: Text | Conversations, replay: Text | None = None):
        self.plan, self.sources = plan, (synthetic, replay)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict:
        import torch

        item = self.sources[self.plan.source[index]][self.plan.block[index]]
        return {name: torch.from_numpy(values) for name, values in item.items()}

    def ids(self, index: int) -> np.ndarray:
        return self.sources[self.plan.source[index]].ids(self.plan.block[index])

    def name(self, index: int) -> str:
        """Which block it is, for people."""
        return f"{SOURCES[self.plan.source[index]]} block {self.plan.block[index]}"


class Hdf5Rows:
    """A map-style dataset of the rows of HDF5 files (gptj/create_hdf5.py writes them) in a given order:
    item i is {"input_ids", "labels", "shift_labels"}, (length,) each; the labels are shifted already
    and IGNORED where the mask is 0. Files are opened by the process that reads.

    files: in the order of their rows; counts: rows of each; order: (items,) row numbers.
    """

    def __init__(self, files: list[Path], counts: list[int], order: np.ndarray):
        self.files, self.begins, self.order = files, np.cumsum([0, *counts]), order
        self.opened: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self.order)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"opened": {}}  # an open file cannot go to a worker

    def __getitem__(self, index: int) -> dict:
        import torch

        ids, mask, labels = torch.from_numpy(self.row(index).astype(np.int64))
        labels = labels.where(mask > 0, IGNORED)
        return {"input_ids": ids, "labels": labels, "shift_labels": labels}

    def row(self, index: int) -> np.ndarray:
        """(3, length) int32: input ids, loss mask, labels."""
        import h5py

        file, row = self._place(index)
        if file not in self.opened:
            self.opened[file] = h5py.File(self.files[file], "r")["data"]
        return self.opened[file][row]

    def name(self, index: int) -> str:
        file, row = self._place(index)
        return f"{self.files[file].name} row {row}"

    def _place(self, index: int) -> tuple[int, int]:
        row = int(self.order[index])
        file = int(np.searchsorted(self.begins, row, "right")) - 1
        return file, row - int(self.begins[file])


def order_of_rows(rows: int, bs: int, steps: int, drop_last: bool, seed: int | None) -> np.ndarray:
    """The rows of `steps` batches of `bs`: epoch after epoch, each in an order of its own (`seed`
    None: in file order). `drop_last` leaves out what is less than a batch at an epoch's end; else
    the next epoch begins in the middle of a batch."""
    kept = rows // bs * bs if drop_last else rows
    if not kept or not steps:
        return np.empty(0, np.int64)
    epochs = -(-steps * bs // kept)
    orders = [
        np.arange(rows) if seed is None else np.random.default_rng([seed, epoch]).permutation(rows)
        for epoch in range(epochs)
    ]
    return np.concatenate([order[:kept] for order in orders])[: steps * bs]


def check_hdf5(files: list[Path], vocabulary: int, longest: int) -> tuple[list[int], int]:
    """The rows of every file, and their length. Reads all of it once.

    Raises UserError, which names the file, for what is no HDF5 file, cut, without `data` or
    `n_examples`, of another shape, type or length than the first, or with ids outside the vocabulary.
    """
    import h5py

    counts, length = [], None
    made = "make it again: python gptj/create_hdf5.py --overwrite"
    for path in files:
        try:
            with h5py.File(path, "r") as file:
                data, said = file.get("data"), file.attrs.get("n_examples")
                if not isinstance(data, h5py.Dataset):
                    raise UserError(f"{path}: has no dataset `data`; {made}")
                if said is None:
                    raise UserError(f"{path}: has no attribute n_examples; {made}")
                if data.dtype != np.int32 or data.ndim != 3 or data.shape[1] != 3:
                    raise UserError(f"{path}: data is {data.dtype} {data.shape}, where int32 (n, 3, length) is wanted; {made}")  # fmt: skip
                if len(data) != said:
                    raise UserError(f"{path}: {len(data)} rows, and n_examples says {said}; {made}")
                if length not in (None, data.shape[2]):
                    raise UserError(f"{path}: rows of {data.shape[2]} tokens, and {files[0].name} has rows of {length}; {made}")  # fmt: skip
                length = data.shape[2]
                if length > longest:
                    raise UserError(f"{path}: rows of {length} tokens, and model.max_position_embeddings is {longest}")  # fmt: skip
                for begin in range(0, len(data), 4096):
                    _check_rows(data[begin : begin + 4096], vocabulary, path)
                counts.append(len(data))
        except OSError as error:
            raise UserError(f"{path}: damaged, or no HDF5 file; {made}") from error
    return counts, length


def _check_rows(rows: np.ndarray, vocabulary: int, path: Path) -> None:
    ids = rows[:, ::2]
    if ids.min() < 0 or ids.max() >= vocabulary:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f"{path}: token id {wrong}, and model.vocab_size is {vocabulary}")
    if not np.isin(rows[:, 1], (0, 1)).all():
        raise UserError(f"{path}: a loss mask that is neither 0 nor 1")


def held_out(source: Text | Conversations, most: int) -> Blocks | None:
    """The first `most` blocks in their order, to measure a loss on; None where there are none."""
    number = min(most, len(source))
    return Blocks(Plan(np.zeros(number, np.uint8), np.arange(number)), source) if number else None


def open_training_file(task_name: str, generator: str, conversations: str) -> TokenFile:
    """The token file of a --task_name: `quality` has EntiGraph's passages, `quality-raw` the
    articles, `quality-rephrase` and so on the passages of another method, `instruct` the
    conversations of that name."""
    if task_name == INSTRUCT:
        return open_conversations(conversations, "train")
    task, _, variant = task_name.rpartition("-")
    if variant == "raw":
        return TokenFile(
            paths.articles_bin(task), f"run: python data/tokenize_entigraph.py --task {task} --raw"
        )
    method = variant if task and variant in METHODS else "entigraph"
    task = task if task and variant in METHODS else task_name
    step = f"run: python data/tokenize_entigraph.py --task {task}"
    step += f" --model {generator}" if generator != paths.DEFAULT_GENERATOR else ""
    step += f" --method {method}" if method != "entigraph" else ""
    return TokenFile(paths.passages_bin(task, generator, method), step)


def open_conversations(name: str, split: str) -> TokenFile:
    other = "" if name == paths.DEFAULT_CONVERSATIONS else f" --jsonl FILE --name {name}"
    file = TokenFile(
        paths.conversations_bin(name, split), f"run: python data/tokenize_instruct.py{other}"
    )
    if file.mask is None:
        raise UserError(
            f"{file.path}: has no mask, so it is no file of conversations; {file.made_by}"
        )
    return file


def open_replay_file(name: str, split: str) -> TokenFile:
    other = "" if name == paths.DEFAULT_REPLAY else f" --name {name}"
    return TokenFile(paths.replay_bin(name, split), f"run: python data/tokenize_redpj.py{other}")


# fmt: off
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task_name", default="quality", help="as train.py's (default quality)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="the generator (default %(default)s)")
    add("--model_name", default=paths.DEFAULT_TOKENIZER, help="whose tokenizer decodes (default %(default)s)")
    add("--replay", default=paths.DEFAULT_REPLAY, help="name of the replay files (default %(default)s)")
    add("--conversations", default=paths.DEFAULT_CONVERSATIONS, help="name of their files, for --task_name instruct (default %(default)s)")
    add("--rr", type=float, default=0.1, help="share of replay blocks (default 0.1)")
    add("--epochs", type=float, default=2, help="default 2")
    add("--bs", type=int, default=16, help="blocks per step (default 16)")
    add("--block_size", type=int, default=2048, help="tokens per block (default 2048)")
    add("--blocks", type=int, default=5, help="how many to print (default 5)")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.bs < 1 or args.block_size < 1:
        raise UserError("--bs and --block_size: must be above 0")
    files = [open_training_file(args.task_name, args.model, args.conversations)]
    files += [open_replay_file(args.replay, "train")] if args.rr else []
    sources = [source_of(file, args.block_size, args.seed) for file in files]
    lengths = [*map(len, sources), 0][:2]
    plan = make_plan(*lengths, args.epochs, args.rr, args.bs, args.seed)
    blocks = Blocks(plan, *sources)

    from utils.tokenizer import fingerprint, load_tokenizer  # a second to import: not for --help

    tokenizer = load_tokenizer(args.model_name, "--model_name")
    for file in files:
        file.check_vocabulary(fingerprint(tokenizer), len(tokenizer), args.model_name)
    for index in range(min(args.blocks, len(blocks))):
        print(f"--- block {index}: {blocks.name(index)}")
        print(shown(blocks[index]["labels"].tolist(), blocks.ids(index).tolist(), tokenizer))
    print("---")
    for file, source in zip(files, sources, strict=True):
        print(
            f"{file.path.name}: {file.meta['tokens']:,} tokens, {file.meta['documents']:,} documents, {len(source):,} blocks"
            + (f", {source.used():.1%} full" if file.mask is not None else "")
        )
    print(
        f"plan: {len(plan):,} blocks of {args.block_size} in {len(plan) // args.bs:,} steps of {args.bs}; "
        f"{plan.replay_share():.1%} replay"
    )


def shown(labels: list[int], ids: list[int], tokenizer) -> str:
    """A block as text; of a conversation's, what is learnt stands between ⟦ and ⟧."""
    if IGNORED not in labels:
        return tokenizer.decode(ids)
    runs = itertools.groupby(zip(labels, ids, strict=True), key=lambda pair: pair[0] != IGNORED)
    texts = [(learnt, tokenizer.decode([i for _, i in run])) for learnt, run in runs]
    return "".join(f"⟦{text}⟧" if learnt else text for learnt, text in texts)


if __name__ == "__main__":
    run(main)
