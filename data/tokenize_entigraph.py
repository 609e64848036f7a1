"""Step 2: passages -> token file.

    python data/tokenize_entigraph.py                  # QuALITY, gpt-4-turbo, Llama 3's tokenizer
    python data/tokenize_entigraph.py --raw            # the articles themselves: the raw baseline
    python data/tokenize_entigraph.py --task example --input data/example/passages \\
        --tokenizer ckpts/SmolLM2-135M-Instruct

Writes data/dataset/bins/<task>_all-entigraph<model>.bin (or <task>_all-raw.bin) with its .idx and
.json. Documents are in a seeded order, and memory does not grow with their number.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from utils import corpus, paths, quality, tokens
from utils.io import run


# fmt: off
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="quality", help="quality or example (default quality)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="whose passages these are (default %(default)s)")
    add("--tokenizer", default=paths.DEFAULT_TOKENIZER, help="name or folder (default %(default)s)")
    add("--input", type=Path, nargs="+", metavar="FOLDER", help="folders of passages (default: step 1's)")
    add("--raw", action="store_true", help="the articles in place of the passages")
    add("--seed", type=int, default=0, help="of the order of documents")
    return parser.parse_args()
# fmt: on


def main() -> None:
    args = parse_arguments()
    rng = np.random.default_rng(args.seed)
    if args.raw:
        target = paths.articles_bin(args.task)
        build, sources = articles(args.task, rng)
    else:
        target = paths.entigraph_bin(args.task, args.model)
        folders = args.input or [paths.passages_dir(args.task, args.model)]
        build, sources = passages(
            folders,
            rng,
            f"run: python data/entigraph.py all --task {args.task} --model {args.model}",
        )
    tokenizer = tokens.load_tokenizer(args.tokenizer)
    tokens.write_documents(target, build, tokenizer, {"seed": args.seed, "sources": sources})


def articles(task: str, rng: np.random.Generator) -> tuple[Callable[[], Iterable[str]], list[str]]:
    documents = quality.load_task(task)
    order = rng.permutation(len(documents))
    texts = [corpus.article_text(documents[index]) for index in order]
    return lambda: texts, [str(path) for path in quality.task_files(task)]


def passages(
    folders: list[Path], rng: np.random.Generator, made_by: str
) -> tuple[Callable[[], Iterable[str]], list[str]]:
    files, places = corpus.locate_passages(folders, made_by)
    places = rng.permutation(places)
    return lambda: corpus.read_passages(files, places), [str(folder) for folder in folders]


if __name__ == "__main__":
    run(main)
