"""TODO data.mixture."""

import argparse
from dataclasses import dataclass

import numpy as np

from data.generation.methods import METHODS
from data.packing import ConversationBlocks, TextBlocks, blocks_of_file
from utils import paths
from utils.errors import UserError
from utils.token_file import TokenFile

SYNTHETIC, REPLAY = 0, 1
SOURCES = ("synthetic", "replay")
INSTRUCT = "instruct"  # the --task_name of conversations
SYNTHETIC_ORDER, REPLAY_ORDER, MIX = 1, 2, 3


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
        raise UserError("the replay text is shorter than one block; give a smaller --block_size or --rr 0")
    wanted = max(1, round(epochs * synthetic))
    added = round(wanted * rr / (1 - rr))
    if wanted + added < bs:
        raise UserError(f"--bs {bs}: the run has {wanted + added} blocks in all; give a smaller --bs or --block_size")
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


class BlockDataset:
    """A map-style dataset of the blocks of two sources (Text or Conversations; of the replay, Text) in
    the order of a plan."""

    def __init__(self, plan: Plan, synthetic: TextBlocks | ConversationBlocks, replay: TextBlocks | None = None):
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


def held_out_blocks(source: TextBlocks | ConversationBlocks, most: int) -> BlockDataset | None:
    """The first `most` blocks in their order, to measure a loss on; None where there are none."""
    number = min(most, len(source))
    return BlockDataset(Plan(np.zeros(number, np.uint8), np.arange(number)), source) if number else None


def open_training_file(task_name: str, generator: str, conversations: str) -> TokenFile:
    """The token file of a --task_name: `quality` has EntiGraph's passages, `quality-raw` the
    articles, `quality-rephrase` and so on the passages of another method, `instruct` the
    conversations of that name."""
    if task_name == INSTRUCT:
        return open_conversations(conversations, "train")
    task, _, variant = task_name.rpartition("-")
    if variant == "raw":
        return TokenFile(paths.articles_bin(task), f"run: python data/tokenize_entigraph.py --task {task} --raw")
    method = variant if task and variant in METHODS else "entigraph"
    task = task if task and variant in METHODS else task_name
    step = f"run: python data/tokenize_entigraph.py --task {task}"
    step += f" --model {generator}" if generator != paths.DEFAULT_GENERATOR else ""
    step += f" --method {method}" if method != "entigraph" else ""
    return TokenFile(paths.passages_bin(task, generator, method), step)


def open_conversations(name: str, split: str) -> TokenFile:
    other = "" if name == paths.DEFAULT_CONVERSATIONS else f" --jsonl FILE --name {name}"
    file = TokenFile(paths.conversations_bin(name, split), f"run: python data/tokenize_instruct.py{other}")
    if file.mask is None:
        raise UserError(f"{file.path}: has no mask, so it is no file of conversations; {file.made_by}")
    return file


def open_replay_file(name: str, split: str) -> TokenFile:
    other = "" if name == paths.DEFAULT_REPLAY else f" --name {name}"
    return TokenFile(paths.replay_bin(name, split), f"run: python data/tokenize_redpj.py{other}")


def open_files(args: argparse.Namespace) -> dict:
    """The token files of the run, each read once to see that it is the one its sidecar describes."""
    files = {"train": open_training_file(args.task_name, args.model, args.conversations)}
    if args.rr:
        files["replay"] = open_replay_file(args.replay, "train")
    if args.task_name == INSTRUCT:
        files["held_out"] = open_conversations(args.conversations, "test")
        must_match = files["train"]
    elif args.rr:
        files["held_out"] = open_replay_file(args.replay, "test")
        must_match = files["replay"]
    for file in files.values():
        file.verify()
    if "held_out" in files and from_different_runs(must_match, files["held_out"]):
        raise UserError(
            f"{must_match.path} and {files['held_out'].path.name}: not made by one run, so held-out "
            f"text may be trained on; {must_match.made_by}"
        )
    return files


def from_different_runs(one: TokenFile, other: TokenFile) -> bool:
    keys = ("seed", "sources", "test_share", "template_sha256", "learnt", "block_size")
    return any(one.meta.get(key) != other.meta.get(key) for key in keys)


def make_datasets(args: argparse.Namespace, files: dict) -> tuple[BlockDataset, BlockDataset | None]:
    inside = args.mask_documents
    synthetic = blocks_of_file(files["train"], args.block_size, args.seed, inside, args.subsample_ratio)
    replay, test = (
        blocks_of_file(files[name], args.block_size, args.seed, inside) if name in files else ()
        for name in ("replay", "held_out")
    )
    plan = make_plan(len(synthetic), len(replay), args.epochs, args.rr, int(args.bs), args.seed)
    return BlockDataset(plan, synthetic, replay), held_out_blocks(test, args.eval_blocks)
