"""Step 1: documents -> synthetic passages.

    python data/entigraph.py all --dry_run         # estimated cost; makes no call
    python data/entigraph.py 0                     # the first article of QuALITY, gpt-4-turbo
    python data/entigraph.py all --max_triples 200 --concurrency 256 --budget_usd 500
    python data/entigraph.py all --batch submit    # half the price, within a day; then status, collect
    python data/entigraph.py 0-2 --task example --model Llama-3.1-8B-Instruct \\
        --base_url http://127.0.0.1:8000/v1        # any OpenAI-compatible server

EntiGraph (--method has others): for each article, one call lists its entities; then one call per pair of entities and
per triple of a seeded sample retells the article from their perspective. Every reply is appended on arrival to the
article's journal, data/dataset/raw/<task>_<method>_<model>/<uid>.jsonl. The same command resumes an interrupted run and
pays for no reply twice.
"""

import argparse
import asyncio
from contextlib import closing
from functools import partial
from pathlib import Path

from data.generation import methods
from data.generation.batch_run import BatchRun
from data.generation.calls import MAX_TOKENS, CallSettings, write_summary
from data.generation.cost_estimate import print_estimate
from data.generation.import_json import import_passages
from data.generation.live_run import LiveRun
from data.generation.methods import GenerationSettings
from data.generation.passages import PassageStore
from data.generation.sections import split_for_server, split_long
from inference.batch_api import pending_calls
from inference.budget import Ledger
from inference.keys import find_server
from inference.prices import Price, find_price
from tasks import readers
from tasks.documents import load_task, parse_indices
from utils import cli, paths
from utils.cli import (
    add_wait_flag,
    call_count,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    print_result,
)
from utils.errors import RESUMES, UserError, run


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("articles", nargs="?", help="article indices from 0: 7, 0-9, 0,3,7 or all")
    cli.add_corpus_flags(parser)
    add_method_flags(parser.add_argument_group("method"))
    add_server_flags(parser.add_argument_group("model server"))
    add_cost_flags(parser.add_argument_group("cost"))
    add_mode_flags(parser.add_argument_group("mode (default: live calls)"))
    args = parser.parse_args()
    validate(args)
    refuse_unused(parser, args)
    return args


def add_method_flags(group) -> None:
    add = group.add_argument
    add("--method", choices=methods.METHODS, default="entigraph", help="generation method")
    add("--max_entities", type=positive_int, help="use the first entities (or strategies) of an article (default all)")
    add("--max_pairs", type=non_negative_int, help="pairs per article (default all)")
    add("--max_triples", type=non_negative_int, default=1000, help="triples per article; 40 entities have 9,880")
    add("--aim_tellings", type=positive_int, metavar="K", help="ask for what is told least, until all is told K times")
    add("--samples", type=call_count, default=1, help="passages per pair, triple or other request")
    cli.add_seed_flag(group, "of the samples of pairs and triples, and of each call")


def add_server_flags(group) -> None:
    add, formats = group.add_argument, ["json_object", "json_schema"]
    cli.add_generator_flag(group)
    cli.add_base_url_flag(group)
    add("--max_tokens", type=positive_int, default=MAX_TOKENS, help="maximum length of a reply")
    add("--temperature", type=non_negative_float, default=1.0, help="sampling temperature; 1.0 in the paper")
    add("--response_format", choices=formats, default="json_object", help="of lists; small models need json_schema")
    add("--concurrency", type=call_count, default=16, help="calls in flight")
    add("--requests_per_minute", type=positive_float, help="rate limit (default: adapted to the server's refusals)")
    add("--tokens_per_minute", type=positive_float, help="rate limit in prompt and reply tokens (default none)")
    add("--timeout", type=positive_float, default=600.0, help="seconds per try of a call")
    add_wait_flag(group)
    section_help = "split longer documents into sections (default: what the server's context leaves)"
    add("--section_tokens", type=positive_int, help=section_help)


def add_cost_flags(group) -> None:
    add, prices = group.add_argument, paths.prices_file()
    add("--budget_usd", type=positive_float, help="hard limit in dollars, earlier runs included (default none)")
    add("--target_tokens", type=positive_int, help="stop once these articles have passages of so many tokens")
    add("--max_tokens_total", type=positive_int, help="hard limit in prompt and reply tokens (default none)")
    add("--prices", type=Path, default=prices, help="dollars per million tokens (default data/prices.json)")


def add_mode_flags(group) -> None:
    add = group.add_argument
    add("--dry_run", action="store_true", help="print calls, tokens, dollars and time; make no call")
    add("--batch", choices=["submit", "status", "collect", "abandon"], help="use OpenAI's Batch API")
    add("--retry_failed", action="store_true", help="repeat also truncated and filtered replies, which were paid for")
    add("--import_json", type=Path, metavar="DIR", help="import a published corpus, one JSON list per document")


def validate(args: argparse.Namespace) -> None:
    if args.articles is None and not args.import_json:
        raise UserError("articles: missing; give 0, 0-9, 0,3,7 or all")
    if args.import_json and args.method != "entigraph":
        raise UserError(f"--method {args.method}: --import_json reads EntiGraph's passages; omit --method")
    if args.aim_tellings and args.method != "entigraph":
        raise UserError(f"--method {args.method}: --aim_tellings chooses pairs and triples of EntiGraph; omit one")
    if args.aim_tellings and args.dry_run:
        raise UserError(
            "--dry_run: the calls of --aim_tellings depend on the replies; scripts/own_corpus_plan.py plans"
        )
    if args.batch and (args.aim_tellings or args.target_tokens):
        raise UserError("--batch: --aim_tellings and --target_tokens look at each reply; omit --batch")


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise UserError for an option without effect."""
    refuse = partial(cli.refuse_without_effect, parser, args)
    method = methods.METHODS[args.method]
    if not method.list_kind:
        refuse("max_entities response_format", f"with --method {args.method}")
    for kind, option in (("pair", "max_pairs"), ("triple", "max_triples")):
        if kind not in method.group_sizes:
            refuse(option, f"with --method {args.method}")
    if not args.corpus:
        refuse("strict", "without --corpus")


def main() -> None:
    args = parse_arguments()
    if args.corpus:
        args.task = readers.import_corpus(args.corpus, args.strict)
    documents = load_task(args.task)
    indices = parse_indices("all" if args.articles is None else args.articles, len(documents))
    selected = split_long([documents[index] for index in indices], args.section_tokens)
    if not (args.section_tokens or args.dry_run or args.batch or args.import_json):
        selected = split_for_server(selected, args.model, args.base_url, args.max_tokens)
    settings = GenerationSettings.from_args(args)
    folder = paths.passages_dir(args.task, args.model, args.method)
    price = find_price(args.prices, args.model)
    if args.dry_run:
        store = PassageStore(folder, args.retry_failed, read_only=True)
        print_estimate(selected, settings, store, price, args.concurrency)
        return
    if not args.import_json:
        find_server(args.base_url)  # without a key, before a folder is made
    with closing(open_ledger(args, folder, price)) as ledger:
        store = PassageStore(folder, args.retry_failed)
        if args.import_json:
            import_passages(args.import_json, documents, settings, store)
            report(store, ledger)
            return
        if not args.batch and (calls := pending_calls(folder / "batches.state")):
            raise UserError(
                f"{calls} calls are under way in batches, and would be paid twice; first: --batch collect, or --batch abandon"
            )
        store.open_all(selected, settings)
        parts = (selected, settings, CallSettings.from_args(args), store, ledger)
        try:
            asyncio.run(BatchRun(*parts).run(args.batch) if args.batch else LiveRun(*parts).run())
        finally:
            store.drop_replaced()
            report(store, ledger)


def open_ledger(args: argparse.Namespace, folder: Path, price: Price | None) -> Ledger:
    if args.budget_usd is not None and not price:
        raise UserError(f"--budget_usd: {args.prices} has no price for {args.model}; add it, or set --max_tokens_total")
    return Ledger(folder / "calls.ledger", price, args.budget_usd, args.max_tokens_total)


def report(store: PassageStore, ledger: Ledger) -> None:
    """Write summary.json and print it."""
    figures = write_summary(store, ledger)
    tokens = figures["prompt_tokens"] + figures["completion_tokens"]
    usd = "" if figures["usd"] is None else f", ${figures['usd']:.2f}"
    documents = "1 document" if figures["documents"] == 1 else f"{figures['documents']:,} documents"
    records = f"{documents}, {figures['records']:,} records in {store.folder}"
    print_result(figures, f"{records} ({tokens:,} tokens{usd} over all runs; summary.json)")


if __name__ == "__main__":
    run(main, RESUMES)
