"""The datasets a model trains on, and the plan that says which block comes when.

Run it to look at them:

    python data/cptdata.py                                   # QuALITY, what step 4 will train on
    python data/cptdata.py --task_name example --model_name ckpts/SmolLM2-135M-Instruct --blocks 3
"""

import argparse
import itertools

from data.mixture import BlockDataset, make_plan, open_replay_file, open_training_file
from data.packing import blocks_of_file
from utils import paths
from utils.errors import UserError, run
from utils.token_file import IGNORE_INDEX


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task_name", default="quality", help="as train.py's (default quality)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="the generator (default %(default)s)")
    add("--model_name", default=paths.DEFAULT_TOKENIZER, help="whose tokenizer decodes (default %(default)s)")
    add("--replay", default=paths.DEFAULT_REPLAY, help="name of the replay files (default %(default)s)")
    add(
        "--conversations",
        default=paths.DEFAULT_CONVERSATIONS,
        help="name of their files, for --task_name instruct (default %(default)s)",
    )
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
    sources = [blocks_of_file(file, args.block_size, args.seed) for file in files]
    lengths = [*map(len, sources), 0][:2]
    plan = make_plan(*lengths, args.epochs, args.rr, args.bs, args.seed)
    blocks = BlockDataset(plan, *sources)

    from utils.tokenizer import load_tokenizer, vocabulary_sha256  # a second to import: not for --help

    tokenizer = load_tokenizer(args.model_name, "--model_name")
    for file in files:
        file.check_vocabulary(vocabulary_sha256(tokenizer), len(tokenizer), args.model_name)
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
    if IGNORE_INDEX not in labels:
        return tokenizer.decode(ids)
    runs = itertools.groupby(zip(labels, ids, strict=True), key=lambda pair: pair[0] != IGNORE_INDEX)
    texts = [(learnt, tokenizer.decode([i for _, i in run])) for learnt, run in runs]
    return "".join(f"⟦{text}⟧" if learnt else text for learnt, text in texts)


if __name__ == "__main__":
    run(main)
