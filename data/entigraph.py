"""Step 1: documents -> synthetic passages.

For every article: one call names its entities, then one call for every pair of entities and for a
seeded sample of the triples retells the article from their angle (EntiGraph; --method has others).
Every reply is in the article's journal, data/dataset/raw/<task>_<method>_<model>/<uid>.jsonl, as soon
as it is there; the same command goes on where the last one stopped and pays for nothing twice.

    python data/entigraph.py all --dry_run         # what it would cost; nothing is called
    python data/entigraph.py 0                     # the first article of QuALITY, gpt-4-turbo
    python data/entigraph.py all --max_triples 200 --concurrency 256 --budget_usd 500
    python data/entigraph.py all --batch submit    # half the price, within a day; then status, collect
    python data/entigraph.py 0-2 --task example --model Llama-3.1-8B-Instruct \\
        --base_url http://127.0.0.1:8000/v1        # any OpenAI-compatible server
"""

import argparse
import asyncio
from contextlib import closing
from pathlib import Path

from data.generation import methods
from data.generation.batch_run import BatchRun
from data.generation.calls import write_summary
from data.generation.cost_estimate import print_estimate
from data.generation.import_json import import_published
from data.generation.live_run import LiveRun
from data.generation.passages import PassageStore, open_all
from inference.batch_api import pending_calls
from inference.budget import Ledger
from inference.prices import find_price
from tasks import readers
from tasks.documents import load_task, parse_indices
from utils import paths
from utils.cli import non_negative_int, positive_float, positive_int
from utils.errors import UserError, run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("articles", nargs="?", help="which, by number from 0: 7, 0-9, 0,3,7 or all")
    add(
        "--task",
        default="quality",
        help="quality, example, or your own (data/dataset/raw/<task>.jsonl; default quality)",
    )
    add(
        "--corpus",
        type=Path,
        metavar="DIR",
        help="a folder of your own documents (txt, md, jsonl, html, pdf), in place of --task",
    )
    add("--model", default=paths.DEFAULT_GENERATOR, help="the generator (default %(default)s)")
    add("--base_url", help="an OpenAI-compatible server (default $OPENAI_BASE_URL, else OpenAI)")
    add("--method", choices=methods.METHODS, default="entigraph", help="how to rewrite (default %(default)s)")
    add("--max_entities", type=positive_int, help="entities (or strategies) per article, the first named (default all)")
    add("--max_pairs", type=non_negative_int, help="pairs per article (default all)")
    add(
        "--max_triples",
        type=non_negative_int,
        default=1000,
        help="triples per article (default 1000; 40 entities have 9,880)",
    )
    add("--samples", type=positive_int, default=1, help="passages of everything that is asked for (default 1)")
    add("--dry_run", action="store_true", help="print calls, tokens, dollars and time, and call nothing")
    add("--budget_usd", type=positive_float, help="stop before this is spent, earlier runs counted (default none)")
    add("--max_tokens_total", type=positive_int, help="the same in tokens, of prompts and replies (default none)")
    add(
        "--prices",
        type=Path,
        default=paths.prices_file(),
        help="dollars for a million tokens (default data/prices.json)",
    )
    add("--concurrency", type=positive_int, default=16, help="calls under way at once (default 16)")
    add("--requests_per_minute", type=positive_float, help="your limit, if you know it (default: learnt from refusals)")
    add("--tokens_per_minute", type=positive_float, help="your limit, if you know it")
    add("--timeout", type=positive_float, default=600.0, help="seconds for one try of a call (default 600)")
    add("--batch", choices=["submit", "status", "collect"], help="through OpenAI's Batch API")
    add(
        "--retry_failed",
        action="store_true",
        help="ask again also for replies that were cut or filtered, which were paid for",
    )
    add("--import_json", type=Path, metavar="DIR", help="take over a corpus published as one JSON list a document")
    add("--max_tokens", type=positive_int, default=4096, help="longest reply (default 4096)")
    add("--temperature", type=float, default=1.0, help="default 1.0, as in the paper")
    add(
        "--response_format",
        choices=["json_object", "json_schema"],
        default="json_object",
        help="how the listing call asks for JSON (small local models need json_schema)",
    )
    add("--seed", type=int, default=0, help="of the samples, and sent with each call")
    args = parser.parse_args()
    if args.articles is None and not args.import_json:
        parser.error("which articles? 0, 0-9, 0,3,7 or all")
    return args


def main() -> None:
    args = parse_arguments()
    if args.corpus:
        args.task = readers.import_corpus(args.corpus)
    documents = load_task(args.task)
    chosen = [documents[n] for n in parse_indices("all" if args.articles is None else args.articles, len(documents))]
    most = {"pair": args.max_pairs, "triple": args.max_triples}
    recipe = methods.GenerationSettings(args.model, args.method, most, args.samples, args.seed, args.max_entities)
    folder = paths.passages_dir(args.task, args.model, args.method)
    if args.dry_run:
        print_estimate(args, chosen, recipe, folder)
        return
    with closing(open_ledger(args, folder)) as ledger:
        store = PassageStore(folder, args.retry_failed)
        if args.import_json:
            import_published(args.import_json, documents, recipe, store)
            return
        if not args.batch and (calls := pending_calls(folder / "batches.state")):
            raise UserError(
                f"{calls} calls are under way in batches and would be paid for twice; first: --batch collect"
            )
        open_all(store, chosen, recipe)
        way = (BatchRun if args.batch else LiveRun)(args, chosen, recipe, store, ledger)
        try:
            asyncio.run(way.run())
        finally:
            write_summary(store, ledger)


def open_ledger(args: argparse.Namespace, folder: Path) -> Ledger:
    price = find_price(args.prices, args.model)
    if args.budget_usd is not None and not price:
        raise UserError(f"--budget_usd: {args.prices} has no price for {args.model}; add it, or set --max_tokens_total")
    return Ledger(folder / "calls.ledger", price, args.budget_usd, args.max_tokens_total)


if __name__ == "__main__":
    run(main)
