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

from data.generation import filters, methods
from data.generation.passages import locate_passages, read_passages
from tasks.documents import article_text, load_task, task_files
from utils import paths
from utils.errors import UserError, run
from utils.tokenizer import load_tokenizer, write_documents


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", default="quality", help="quality or example (default quality)")
    add("--model", default=paths.DEFAULT_GENERATOR, help="whose passages these are (default %(default)s)")
    add("--method", choices=methods.METHODS, default="entigraph", help="step 1's (default %(default)s)")
    add(
        "--min_quality",
        type=float,
        default=0.0,
        metavar="Q",
        help="leave out passages below it, and repeated ones; 0 to 1, see utils/inspection.py (default 0: all)",
    )
    add("--tokenizer", default=paths.DEFAULT_TOKENIZER, help="name or folder (default %(default)s)")
    add("--input", type=Path, nargs="+", metavar="FOLDER", help="folders of passages (default: step 1's)")
    add("--raw", action="store_true", help="the articles in place of the passages")
    add("--seed", type=int, default=0, help="of the order of documents")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    rng = np.random.default_rng(args.seed)
    if args.raw:
        target = paths.articles_bin(args.task)
        build, sources = articles(args.task, rng)
    else:
        target = paths.passages_bin(args.task, args.model, args.method)
        build, sources = passages_of(args, rng)
    tokenizer = load_tokenizer(args.tokenizer)
    write_documents(target, build, tokenizer, {"seed": args.seed, "sources": sources})


def articles(task: str, rng: np.random.Generator) -> tuple[Callable[[], Iterable[str]], list[str]]:
    documents = load_task(task)
    order = rng.permutation(len(documents))
    texts = [article_text(documents[index]) for index in order]
    return lambda: texts, [str(path) for path in task_files(task)]


def passages_of(args: argparse.Namespace, rng: np.random.Generator) -> tuple[Callable[[], Iterable[str]], list[str]]:
    folders = args.input or [paths.passages_dir(args.task, args.model, args.method)]
    made_by = f"run: python data/entigraph.py all --task {args.task} --model {args.model}"
    made_by += f" --method {args.method}" if args.method != "entigraph" else ""
    files, places = locate_passages(folders, made_by)
    if args.min_quality > 0:
        places = good_ones(files, places, load_task(args.task), args.min_quality)
    places = rng.permutation(places)
    return lambda: read_passages(files, places), [str(folder) for folder in folders]


def good_ones(files: list[Path], places: np.ndarray, documents: list, least: float) -> np.ndarray:
    """The places of passages of at least that quality, each text once."""
    articles = {document.uid: document.text for document in documents}
    seen: set[bytes] = set()
    file, source, kept = None, set(), []
    for (number, _), text in zip(places, read_passages(files, places), strict=True):
        if number != file:
            article = filters.words_of(articles.get(files[number].stem, ""))
            file, source = number, set(filters.ngrams(article, filters.COPIED_N))
        words = filters.words_of(text)
        mark = filters.text_digest(words)
        kept.append(mark not in seen and filters.passage_score(words, text, source) >= least)
        seen.add(mark)
    if not any(kept):
        raise UserError(f"--min_quality {least}: no passage is left")
    print(f"--min_quality {least}: {sum(kept):,} of {len(kept):,} passages are left")
    return places[np.array(kept)]


if __name__ == "__main__":
    run(main)
