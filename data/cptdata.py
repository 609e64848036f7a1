"""Print what a model will see in training, block by block, with the replay mix.

    python data/cptdata.py                                   # QuALITY: what step 4 trains on
    python data/cptdata.py --task_name example --model_name ckpts/SmolLM2-135M-Instruct --blocks 3

In conversations the trained tokens are shown between ⟦ and ⟧.
"""

import argparse
import itertools

from data.mixture import MixtureSettings, add_data_arguments, mix, open_replay_file, open_training_file
from utils import cli, paths
from utils.cli import fraction, non_negative_int, positive_float, positive_int
from utils.errors import run
from utils.token_file import IGNORE_INDEX


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--model_name", default=paths.DEFAULT_TOKENIZER, help="hub name or checkpoint folder whose tokenizer decodes")
    add("--rr", type=fraction, default=0.1, help="fraction of blocks that are replay")
    add("--epochs", type=positive_float, default=2, help="passes over the training text")
    add("--bs", type=positive_int, default=16, help="blocks per optimizer step")
    add("--blocks", type=non_negative_int, default=5, help="blocks to print")
    cli.add_seed_flag(parser, "of the data order")
    add_data_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    settings = MixtureSettings.from_args(args)
    files = {"train": open_training_file(args.task_name, args.model, args.conversations)}
    if args.rr:
        files["replay"] = open_replay_file(args.replay, "train")
    blocks = mix(files, settings)

    from utils.tokenizer import load_tokenizer, vocabulary_sha256  # heavy

    tokenizer = load_tokenizer(args.model_name, "--model_name")
    for file in files.values():
        file.check_vocabulary(vocabulary_sha256(tokenizer), len(tokenizer), args.model_name)
    for index in range(min(args.blocks, len(blocks))):
        print(f"--- block {index}: {blocks.name(index)}")
        print(block_text(blocks[index]["labels"].tolist(), blocks.ids(index).tolist(), tokenizer))
    print("---")
    for file, source in zip(files.values(), blocks.sources, strict=False):
        filled = f", {source.fill_rate():.1%} full" if file.mask is not None else ""
        counts = f"{file.meta['tokens']:,} tokens, {file.meta['documents']:,} documents, {len(source):,} blocks"
        print(f"{file.path.name}: {counts}{filled}")
    steps, share = len(blocks) // args.bs, blocks.plan.replay_share()
    training = {"train_blocks": len(blocks.sources[0]), "train_tokens": files["train"].meta["tokens"]}
    sentence = f"plan: {len(blocks):,} blocks of {args.block_size} in {steps:,} steps of {args.bs}; {share:.1%} replay"
    cli.print_result({"blocks": len(blocks), "steps": steps, "replay_share": round(share, 4)} | training, sentence)


def block_text(labels: list[int], ids: list[int], tokenizer) -> str:
    """A block as text, without padding; trained tokens of a conversation stand between ⟦ and ⟧."""
    while labels and labels[-1] == IGNORE_INDEX and ids[-1] == 0:
        labels, ids = labels[:-1], ids[:-1]
    if IGNORE_INDEX not in labels:
        return tokenizer.decode(ids)
    runs = itertools.groupby(zip(labels, ids, strict=True), key=lambda pair: pair[0] != IGNORE_INDEX)
    texts = [(trained, tokenizer.decode([i for _, i in run])) for trained, run in runs]
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in texts)


if __name__ == "__main__":
    run(main)
