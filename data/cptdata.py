"""The datasets a model trains on, and the plan that says which block comes when.

Run it to look at them:

    python data/cptdata.py                                   # QuALITY, what step 4 will train on
    python data/cptdata.py --task_name example --model_name ckpts/SmolLM2-135M-Instruct --blocks 3
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import paths
from utils.bins import TokenFile
from utils.corpus import METHODS
from utils.io import UserError, run

SYNTHETIC, REPLAY = 0, 1
IGNORED = -100  # a label that counts for nothing, as torch and transformers have it
SOURCES = ("synthetic", "replay")
# Each random choice has a generator of its own: seed, purpose, and the epoch or round.
DOCUMENTS, SYNTHETIC_ORDER, REPLAY_ORDER, MIX = range(4)


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


def subsample(file: TokenFile, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a share of the documents, whole and in file order, and the end offset of each.

    Nested: with the same seed the documents of 0.1 are among those of 0.2.
    """
    if not 0 < ratio <= 1:
        raise UserError(f"--subsample_ratio {ratio}: above 0, at most 1")
    if ratio == 1:
        return file.ids, file.ends
    order = np.random.default_rng([seed, DOCUMENTS]).permutation(len(file.ends))
    chosen = np.zeros(len(order), bool)
    chosen[order[: max(1, round(ratio * len(order)))]] = True
    parts = [ids for ids, kept in zip(file.documents(), chosen, strict=True) if kept]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate([*parts, np.empty(0, file.ids.dtype)]), ends


class Blocks:
    """A map-style dataset of blocks in the order of a plan: item i is
    {"input_ids": (block_size,), "labels": the same}; the model shifts the labels itself.

    `ends` (of the synthetic and of the replay documents, in tokens) masks documents: the items have
    "position_ids" (block_size,) that begin at 0 with every document, from which transformers keeps
    attention inside it, and no label where a document begins, which nothing before it can tell.
    """

    def __init__(
        self,
        plan: Plan,
        synthetic: np.ndarray,
        replay: np.ndarray,
        ends: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self.plan, self.sources, self.ends = plan, (synthetic, replay), ends

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict:
        import torch

        ids = torch.from_numpy(self.ids(index).astype(np.int64))
        if self.ends is None:
            return {"input_ids": ids, "labels": ids}
        positions = torch.from_numpy(self.positions(index))
        labels = ids.masked_fill(positions == 0, IGNORED)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def ids(self, index: int) -> np.ndarray:
        return self.sources[self.plan.source[index]][self.plan.block[index]]

    def positions(self, index: int) -> np.ndarray:
        """(block_size,) int64: how far from the begin of its document (or of the block) a token is."""
        size = self.sources[0].shape[1]
        begin, ends = self.plan.block[index] * size, self.ends[self.plan.source[index]]
        inside = ends[np.searchsorted(ends, begin, "right") : np.searchsorted(ends, begin + size)]
        begins = np.zeros(size, np.int64)
        begins[inside.astype(np.int64) - begin] = inside.astype(np.int64) - begin
        return np.arange(size) - np.maximum.accumulate(begins)

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


def held_out(blocks: np.ndarray, most: int, ends: np.ndarray | None = None) -> Blocks:
    """The first `most` blocks in file order, to measure a loss on; with `ends`, documents masked."""
    number = min(most, len(blocks))
    plan = Plan(np.full(number, REPLAY, np.uint8), np.arange(number))
    return Blocks(plan, blocks[:0], blocks, None if ends is None else (ends, ends))


def open_training_file(task_name: str, generator: str) -> TokenFile:
    """The token file of a --task_name: `quality` has EntiGraph's passages, `quality-raw` the
    articles, `quality-rephrase` and so on the passages of another method."""
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
    add("--rr", type=float, default=0.1, help="share of replay blocks (default 0.1)")
    add("--epochs", type=float, default=2, help="default 2")
    add("--bs", type=int, default=16, help="blocks per step (default 16)")
    add("--block_size", type=int, default=2048, help="tokens per block (default 2048)")
    add("--blocks", type=int, default=5, help="how many to print (default 5)")
    add("--seed", type=int, default=0)
    return parser.parse_args()
# fmt: on


def main() -> None:
    args = parse_arguments()
    if args.bs < 1 or args.block_size < 1:
        raise UserError("--bs and --block_size: must be above 0")
    synthetic_file = open_training_file(args.task_name, args.model)
    replay_file = open_replay_file(args.replay, "train") if args.rr else None
    synthetic = cut_blocks(synthetic_file.ids, args.block_size)
    replay = cut_blocks(replay_file.ids, args.block_size) if replay_file else synthetic[:0]
    plan = make_plan(len(synthetic), len(replay), args.epochs, args.rr, args.bs, args.seed)
    blocks = Blocks(plan, synthetic, replay)

    from utils.tokens import fingerprint, load_tokenizer  # a second to import: not for --help

    tokenizer = load_tokenizer(args.model_name, "--model_name")
    for file in (synthetic_file, replay_file):
        if file:
            file.check_vocabulary(fingerprint(tokenizer), len(tokenizer), args.model_name)
    for index in range(min(args.blocks, len(blocks))):
        print(f"--- block {index}: {SOURCES[plan.source[index]]} {plan.block[index]}")
        print(tokenizer.decode(blocks.ids(index)))
    print("---")
    for file, ids in ((synthetic_file, synthetic), (replay_file, replay)):
        if file:
            print(
                f"{file.path.name}: {file.meta['tokens']:,} tokens, {file.meta['documents']:,} documents, {len(ids):,} blocks"
            )
    print(
        f"plan: {len(plan):,} blocks of {args.block_size} in {len(plan) // args.bs:,} steps of {args.bs}; "
        f"{plan.replay_share():.1%} replay"
    )


if __name__ == "__main__":
    run(main)
