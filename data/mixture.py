"""The replay mix: which block comes when, the datasets of a run, and the flags that choose them."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

import numpy as np

from data.generation.methods import METHODS
from data.packing import BlockSettings, ConversationBlocks, TextBlocks, blocks_of_file
from utils import cli, paths
from utils.cli import settings_from_args
from utils.errors import UserError
from utils.token_file import HELD_OUT_KEY, TokenFile

SYNTHETIC, REPLAY = 0, 1
SOURCES = ("synthetic", "replay")
MOST_BLOCKS = 10**9  # of a run: 16 bytes each in memory
INSTRUCT = "instruct"  # the --task_name of conversations
SYNTHETIC_ORDER, REPLAY_ORDER, MIX = 1, 2, 3  # numbers of the random streams; 0 and 4 are packing.py's
# Two token files made by one run agree in these keys of their sidecars.
SAME_RUN_KEYS = ("seed", "sources", "test_share", "template_sha256", "learnt", "block_size")


def add_data_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    task_help = (
        "corpus, or with -raw, -rephrase, -plain, -qa, -strategies other text than EntiGraph's; instruct: conversations"
    )
    add("--task_name", default="quality", help=task_help)
    cli.add_generator_flag(group)
    add("--conversations", default=paths.DEFAULT_CONVERSATIONS, help="token files of --task_name instruct")
    add("--replay", default=paths.DEFAULT_REPLAY, help="token files of the replay text")
    add("--block_size", type=cli.positive_int, default=2048, help="tokens per block")
    subsample_help = "fraction of the documents; a smaller subset is part of every larger one"
    add("--subsample_ratio", type=cli.as_typed(cli.positive_fraction), default="1", help=subsample_help)
    add("--mask_documents", action="store_true", help="restrict attention to each document, unlike the paper")


@dataclass(frozen=True)
class MixtureSettings:
    """Token files and proportions of a run's data. `rr` is the fraction of blocks that are replay."""

    task_name: str
    generator: str
    conversations: str
    replay: str
    rr: float
    epochs: float
    bs: int
    blocks: BlockSettings

    @classmethod
    def from_args(cls, args: Namespace) -> "MixtureSettings":
        """From the options of train.py or cptdata.py."""
        blocks = BlockSettings(args.block_size, args.seed, args.mask_documents, float(args.subsample_ratio))
        numbers = {"rr": float(args.rr), "epochs": float(args.epochs), "bs": int(args.bs)}
        return settings_from_args(cls, args, **numbers, generator=args.model, blocks=blocks)


@dataclass(frozen=True)
class Plan:
    """The order of blocks of a whole run; a pure function of its arguments.

    `source`: (blocks,) SYNTHETIC or REPLAY; `block`: (blocks,) index into that source's blocks.
    """

    source: np.ndarray
    block: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def replay_share(self) -> float:
        return float((self.source == REPLAY).mean())


class BlockDataset:
    """A map-style dataset of the blocks of two sources in the order of a plan."""

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
        """`synthetic block 12`, for messages."""
        return f"{SOURCES[self.plan.source[index]]} block {self.plan.block[index]}"


def make_plan(synthetic: int, replay: int, epochs: float, rr: float, bs: int, seed: int) -> Plan:
    """Plan `epochs` epochs over `synthetic` blocks, with replay added so that it is the fraction `rr` of all blocks.

    Every synthetic block comes once per epoch; replay blocks are spread evenly at random, and none repeats before
    all `replay` blocks were used. The last step is filled up to `bs` blocks with replay, or, without replay, with
    the beginning of another epoch.
    """
    if not 0 <= rr < 1:
        raise UserError(f"--rr {rr}: must be from 0 to below 1")
    if not synthetic:
        raise UserError("the training text is empty; run the step that makes its token file again")
    if rr and not replay:
        raise UserError("the replay text is empty; run data/tokenize_redpj.py again, or use --rr 0")
    wanted = max(1, round(epochs * synthetic))
    added = round(wanted * rr / (1 - rr))
    if wanted + added > MOST_BLOCKS:
        raise UserError(f"--epochs {epochs:g}, --rr {rr}: {wanted + added:,} blocks in all; at most {MOST_BLOCKS:,}")
    if wanted + added < bs:
        raise UserError(f"--bs {bs}: the run has {wanted + added} blocks in all; use a smaller --bs or --block_size")
    rest = -(wanted + added) % bs
    added, wanted = (added + rest, wanted) if rr else (0, wanted + rest)
    source = np.zeros(wanted + added, np.uint8)
    source[_replay_places(wanted, added, seed)] = REPLAY
    block = np.empty(len(source), np.int64)
    block[source == SYNTHETIC] = _shuffled_rounds(synthetic, wanted, seed, SYNTHETIC_ORDER)
    block[source == REPLAY] = _shuffled_rounds(replay, added, seed, REPLAY_ORDER)
    return Plan(source, block)


def _replay_places(wanted: int, added: int, seed: int) -> np.ndarray:
    """`added` of all places: one at random in each of `added` stretches of equal length."""
    edges = np.linspace(0, wanted + added, added + 1).astype(np.int64)
    return np.random.default_rng([seed, MIX]).integers(edges[:-1], edges[1:])


def _shuffled_rounds(blocks: int, number: int, seed: int, stream: int) -> np.ndarray:
    """The first `number` of: all blocks in one random order, then all in another, and so on."""
    rounds = -(-number // blocks) if number else 0
    orders = [np.random.default_rng([seed, stream, r]).permutation(blocks) for r in range(rounds)]
    return np.concatenate([*orders, np.empty(0, np.int64)])[:number].astype(np.int64)


def mix(files: dict[str, TokenFile], settings: MixtureSettings) -> BlockDataset:
    """The training blocks of a run, from its `train` and `replay` files."""
    synthetic = blocks_of_file(files["train"], settings.blocks)
    replay = blocks_of_file(files["replay"], _without_subsample(settings.blocks)) if "replay" in files else ()
    plan = make_plan(len(synthetic), len(replay), settings.epochs, settings.rr, settings.bs, settings.blocks.seed)
    return BlockDataset(plan, synthetic, replay)


def make_datasets(
    files: dict[str, TokenFile], settings: MixtureSettings, eval_blocks: int
) -> tuple[BlockDataset, BlockDataset | None]:
    """The training blocks and the first `eval_blocks` held-out blocks (None without a held-out file)."""
    held_out = blocks_of_file(files["held_out"], _without_subsample(settings.blocks)) if "held_out" in files else ()
    return mix(files, settings), held_out_blocks(held_out, eval_blocks)


def held_out_blocks(source: TextBlocks | ConversationBlocks, limit: int) -> BlockDataset | None:
    """The first `limit` blocks in their order; None where there are none."""
    number = min(limit, len(source))
    return BlockDataset(Plan(np.zeros(number, np.uint8), np.arange(number)), source) if number else None


def _without_subsample(settings: BlockSettings) -> BlockSettings:
    return BlockSettings(settings.block_size, settings.seed, settings.mask_documents)


def open_files(settings: MixtureSettings) -> dict[str, TokenFile]:
    """The token files of a run by role (train, replay, held_out), each verified against its sidecar's hashes."""
    files = {"train": open_training_file(settings.task_name, settings.generator, settings.conversations)}
    if settings.rr:
        files["replay"] = open_replay_file(settings.replay, "train")
    if settings.task_name == INSTRUCT:
        files["held_out"] = open_conversations(settings.conversations, "test")
        must_match = files["train"]
    elif settings.rr:
        files["held_out"] = open_replay_file(settings.replay, "test")
        must_match = files["replay"]
    for file in files.values():
        file.verify()
    held_out = files.get("held_out")
    if held_out and not made_by_one_run(must_match.meta, held_out.meta):
        raise UserError(
            f"{must_match.path} and {files['held_out'].path.name}: not made by one run, so the training text may "
            f"contain held-out text; {must_match.made_by}"
        )
    return files


def made_by_one_run(training: dict, held_out: dict) -> bool:
    """True if two sidecars are of one run; those of earlier versions do not hold the other's hash."""
    same_hash = training.get(HELD_OUT_KEY, held_out.get("sha256")) == held_out.get("sha256")
    return same_hash and all(training.get(key) == held_out.get(key) for key in SAME_RUN_KEYS)


def open_training_file(task_name: str, generator: str, conversations: str) -> TokenFile:
    """The token file of a --task_name: `quality` means EntiGraph's passages, `quality-raw` the articles,
    `quality-rephrase` and so on the passages of another method, `instruct` the conversations of that name."""
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
    flags = "" if name == paths.DEFAULT_CONVERSATIONS else f" --jsonl FILE --name {name}"
    file = TokenFile(paths.conversations_bin(name, split), f"run: python data/tokenize_instruct.py{flags}")
    if file.mask is None:
        raise UserError(f"{file.path}: has no loss mask, so it does not hold conversations; {file.made_by}")
    return file


def open_replay_file(name: str, split: str) -> TokenFile:
    flags = "" if name == paths.DEFAULT_REPLAY else f" --name {name}"
    return TokenFile(paths.replay_bin(name, split), f"run: python data/tokenize_redpj.py{flags}")
