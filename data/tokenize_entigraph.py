"""Step 2: passages -> token file.

    python data/tokenize_entigraph.py                  # QuALITY, gpt-4-turbo, Llama 3's tokenizer
    python data/tokenize_entigraph.py --raw            # the articles themselves: the raw baseline
    python data/tokenize_entigraph.py --task example --input data/example/passages \\
        --tokenizer ckpts/SmolLM2-135M-Instruct

Writes data/dataset/bins/<task>_all-entigraph<model>.bin (or <task>_all-raw.bin) with its .idx and .json. Documents are
shuffled by --seed; memory does not grow with their number.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data.generation import methods
from data.generation.passages import locate_passages, read_passages
from data.generation.selection import measure_coverage, reasons_to_drop
from tasks.documents import Document, article_text, load_task, task_files
from tasks.readers import RESERVED_TASKS
from utils import cli, paths
from utils.errors import UserError, run
from utils.tokenizer import load_tokenizer, write_documents

WELL_TOLD = 0.9  # fraction of the statements that the passages tell; below it `auto` mixes in the articles
ARTICLE_SHARE = 0.45  # of the training text, and at most MAX_COPIES: what helped a 1.5B generator (LOG.md)
MAX_COPIES = 3


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    cli.add_task_flag(parser)
    cli.add_generator_flag(parser)
    add("--method", choices=methods.METHODS, default="entigraph", help="step 1's generation method")
    add("--input", type=Path, nargs="+", metavar="FOLDER", help="folders of passages (default: step 1's)")
    add("--drop_cut", action="store_true", help="leave out replies cut at --max_tokens instead of trimming them")
    articles_help = "mix in N copies of every article, or `auto`: up to 3 if the passages tell less than 90%% of them"
    add("--with_articles", type=copies, default=0, metavar="N", help=articles_help)
    add("--raw", action="store_true", help="tokenize the articles instead of the passages")
    add(
        "--min_quality",
        type=min_quality,
        default=0.0,
        metavar="Q",
        help="drop repeated passages and those below this score, 0 to 1 (see data/generation/filters.py), or with "
        "`auto` repeated ones, refusals and loops; 0 keeps all",
    )
    cli.add_tokenizer_flag(parser)
    cli.add_seed_flag(parser, "of the order of documents")
    args = parser.parse_args()
    if args.raw:
        cli.refuse_without_effect(parser, args, "method input drop_cut with_articles min_quality", "with --raw")
    return args


def min_quality(text: str) -> float | str:
    return text if text == "auto" else cli.non_negative_float(text)


def copies(text: str) -> int | str:
    return text if text == "auto" else cli.int_between(0, 100)(text)


def main() -> None:
    args = parse_arguments()
    cli.refuse_repeated("--input", args.input or [])
    made_from: dict = {"seed": args.seed}
    if args.raw:
        target, sources = paths.articles_bin(args.task), task_files(args.task)
        documents = load_task(args.task)
        build, number = partial(shuffled_articles, documents, args.seed), len(documents)
    else:
        target = paths.passages_bin(args.task, args.model, args.method)
        sources = args.input or [paths.passages_dir(args.task, args.model, args.method)]
        files, locations, chosen = select_passages(args, sources)
        articles, mixed = choose_articles(args, files, locations) if args.with_articles else ([], {})
        made_from |= chosen | mixed
        build = partial(shuffled_texts, files, locations, articles, args.seed)
        number = len(locations) + len(articles)
    made_from["sources"] = list(map(str, sources))
    sidecar = write_documents(target, build, load_tokenizer(args.tokenizer), made_from, documents=number)
    result = {"file": str(target), "tokens": sidecar["tokens"], "documents": sidecar["documents"]}
    print(f"tokenizer {sidecar['tokenizer']}, encoder {sidecar['encoder']}")
    cli.print_result(
        result, f"{number:,} documents, {sidecar['tokens']:,} tokens{left_out(made_from, number)} -> {target}"
    )


def left_out(made_from: dict, kept: int) -> str:
    """The share of the passages that were left out, in words."""
    if "cut" not in made_from:
        return ""
    count = made_from["stale"] + made_from["cut"] + sum(made_from.get("dropped", {}).values())
    return f", {count / (count + kept):.1%} left out"


def shuffled_articles(documents: list[Document], seed: int) -> Iterator[str]:
    for index in np.random.default_rng(seed).permutation(len(documents)):
        yield article_text(documents[index])


def select_passages(args: argparse.Namespace, folders: list[Path]) -> tuple[list[Path], np.ndarray, dict]:
    """Journals, the shuffled locations of the passages that --min_quality keeps, and entries of the sidecar."""
    made_by = f"run: python data/entigraph.py all --task {args.task} --model {args.model}"
    made_by += f" --method {args.method}" if args.method != "entigraph" else ""
    counts: Counter[str] = Counter()
    files, locations = locate_passages(folders, made_by, args.drop_cut, counts, current_sources(args))
    if stale := counts.pop("stale", 0):
        print(f"{stale:,} passages are about documents that were edited or deleted since, and are left out")
    if repeated := counts.pop("copies", 0):
        print(f"{repeated:,} passages are there twice, with the same id and text, and are taken once")
    if counts:
        print(
            f"replies cut at --max_tokens: {counts['trimmed']:,} trimmed to whole sentences, {counts['cut']:,} left out"
        )
    chosen = {"drop_cut": args.drop_cut, "min_quality": args.min_quality, "stale": stale, "cut": counts["cut"]}
    if args.min_quality:
        reasons = reasons_to_drop(files, locations, load_task(args.task), args.min_quality)
        kept = np.array([not reason for reason in reasons])
        if not kept.any():
            raise UserError(f"--min_quality {args.min_quality}: no passage is left; lower it")
        chosen["dropped"] = dict(sorted(Counter(filter(None, reasons)).items()))
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in chosen["dropped"].items())
        summary = f"{kept.sum():,} of {len(kept):,} passages are left"
        print(f"--min_quality {args.min_quality}: {summary}" + (f"; dropped: {dropped}" if dropped else ""))
        locations = locations[kept]
    return files, locations, chosen


def current_sources(args: argparse.Namespace) -> dict[str, str] | None:
    """The source_sha256 of the task's documents by uid; None with --input, or where the documents are elsewhere."""
    files = task_files(args.task) if paths.corpus_file(args.task).is_file() or args.task in RESERVED_TASKS else []
    if args.input or not files or not all(file.is_file() for file in files):
        return None
    return {document.uid: document.source_sha256 for document in load_task(args.task)}


def choose_articles(args: argparse.Namespace, files: list[Path], locations: np.ndarray) -> tuple[list[str], dict]:
    """The copies of articles to mix in, and what the sidecar says about them."""
    documents = load_task(args.task)
    told, passage_bytes = measure_coverage(documents, files, locations)
    texts = [article_text(document) for document in documents]
    count = args.with_articles
    if count == "auto":
        wanted = ARTICLE_SHARE / (1 - ARTICLE_SHARE) * passage_bytes / sum(len(text.encode()) for text in texts)
        count = 0 if told >= WELL_TOLD else min(max(round(wanted), 1), MAX_COPIES)
    advice = "" if told >= WELL_TOLD else "; training on the articles alone may do better"
    print(
        f"{told:.0%} of the source is told by the passages{advice}; copies of each article that are mixed in: {count}"
    )
    return texts * count, {"told_once": round(told, 4), "copies_of_articles": count}


def shuffled_texts(files: list[Path], locations: np.ndarray, articles: list[str], seed: int) -> Iterator[str]:
    """Passages and articles in a seeded order; one passage in memory at a time."""
    if not articles:
        yield from read_passages(files, np.random.default_rng(seed).permutation(locations))
        return
    order = np.random.default_rng(seed).permutation(len(locations) + len(articles))
    passages = read_passages(files, locations[order[order < len(locations)]])
    for place in order:
        yield next(passages) if place < len(locations) else articles[place - len(locations)]


if __name__ == "__main__":
    run(main, "starts over; the files of an earlier run are kept until then")
