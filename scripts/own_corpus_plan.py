"""Plan of own_corpus.sh: calls, tokens, dollars and hours, after a few calls that measure the generator's speed.

    python scripts/own_corpus_plan.py --task NAME --model gpt-4o-mini --budget_usd 5

The target is --tokens, else 50 times the corpus, at most what --budget_usd pays for and, where no price is known, what
the generator writes in an evening (3 hours). A plan that costs more than a dollar or an hour needs --yes, or a "y" on a
terminal; half as much again, or --budget_usd, is the most that is spent on passages. The plan is kept in out/NAME/plan.json, so that the same command resumes with the same target.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.generation.methods import PassageRequest
from data.generation.sections import split_for_server
from inference.client import Client
from inference.completions import CallFailed
from inference.prices import Price, Usage, find_price
from inference.server_facts import read_facts
from tasks.documents import Document, article_text, load_task
from utils import cli, paths
from utils.cli import call_count, non_negative_int, positive_float, positive_int
from utils.errors import UserError, name_damage, run
from utils.io import read_json, sha256_file, write_json
from utils.progress import working

TIMES_CORPUS = 50
EVENING_S = 3 * 3600.0
FREE_USD, FREE_S = 1.0, 3600.0  # a plan above needs --yes
LIMIT_FACTOR = 1.5  # of the planned dollars: a generator with short replies needs more calls for the same tokens
BYTES_PER_TOKEN = 4.3  # English prose
REPLY_SHARE = 0.75  # of --max_tokens: usual length of a passage
LIST_TOKENS, QUESTION_TOKENS, CALLS_PER_QUESTION = 300, 200, 4
TASK_TOKENS = 250  # of a prompt, after the document; computed for every call
MEASURED_TOKENS = 64  # of the reply that is timed


@dataclass(frozen=True)
class Speed:
    """Tokens per second, of all calls in flight together."""

    prompt: float
    reply: float


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--task", required=True, help="a corpus read by data/read_documents.py")
    cli.add_generator_flag(parser)
    cli.add_base_url_flag(parser)
    add("--tokens", type=positive_int, help="target: tokens of all passages (default: see above)")
    add("--budget_usd", type=positive_float, help="dollars to spend at most")
    add("--prices", type=Path, default=paths.prices_file(), help="dollars per million tokens")
    add("--max_tokens", type=positive_int, default=600, help="maximum length of a passage")
    add(
        "--per_document", type=non_negative_int, default=10, help="questions to ask for about each document, 0 for none"
    )
    add("--concurrency", type=call_count, default=16, help="calls in flight")
    add("--yes", action="store_true", help="accept the plan's cost")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    target = paths.report_dir(args.task) / "plan.json"
    inputs = {key: getattr(args, key) for key in ("model", "tokens", "budget_usd", "max_tokens", "per_document")}
    inputs["corpus"] = sha256_file(paths.corpus_file(args.task))
    if target.is_file():
        with name_damage(target, "delete it"):
            plan = read_json(target, "delete it")
            is_kept, sentence = plan["inputs"] == inputs and "usd_limit" in plan, describe(plan)
        if is_kept:
            cli.print_result(plan, f"the plan of {target} is kept: {sentence}")
            return
    price = find_price(args.prices, args.model)
    if args.budget_usd and not price:
        raise UserError(f"--budget_usd: {args.prices} has no price for {args.model}; add it, or give --tokens")
    documents = split_for_server(load_task(args.task), args.model, args.base_url, args.max_tokens)
    with working("measuring the generator's speed"):
        speed = asyncio.run(measure_speed(args, documents))
    plan = {"inputs": inputs} | make_plan(args, documents, speed, price)
    print_plan(plan)
    confirm(plan, args.yes)
    write_json(target, plan)
    cli.print_result(plan, f"{describe(plan)} -> {target}")


async def measure_speed(args: argparse.Namespace, documents: list[Document]) -> Speed:
    """Time a call without a reply about a document of middle length, then the replies: of a llama.cpp server's slots
    all at once, of another server one, which is taken to answer --concurrency calls as fast."""
    document = sorted(documents, key=lambda document: len(document.text))[len(documents) // 2]
    names = (document.title, document.title)
    prompt = PassageRequest(document, "pair", names, args.model).prompt()
    short_prompt = PassageRequest(replace(document, text=document.title), "pair", names, args.model).prompt()
    client = Client(args.model, args.base_url)
    try:
        slots = (await read_facts(client)).slots
        prompt_s, first = await timed(client.chat(prompt, max_tokens=1, seed=0))
        if slots:
            calls = [client.chat(short_prompt, max_tokens=MEASURED_TOKENS, seed=seed) for seed in range(slots)]
            reply_s, replies = await timed(asyncio.gather(*calls))
        else:
            reply_s, reply = await timed(client.chat(prompt, max_tokens=MEASURED_TOKENS, seed=0))
            reply_s, replies = max(reply_s - prompt_s, reply_s / 2), [reply]  # it may compute the prompt again
    except CallFailed as error:
        raise UserError(f"the calls that measure the generator's speed failed ({error}); check --model") from error
    finally:
        await client.close()
    tokens = first.usage.get("prompt_tokens") or count_tokens(prompt)
    written = sum(reply.usage.get("completion_tokens") or MEASURED_TOKENS for reply in replies)
    if slots:  # whose prompts take time as well
        reply_s = max(reply_s - slots * count_tokens(short_prompt) * prompt_s / tokens, reply_s / 2)
        return Speed(tokens / prompt_s, written / reply_s)
    return Speed(tokens / prompt_s * args.concurrency, written / reply_s * args.concurrency)


async def timed(call: Awaitable) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    begun = time.monotonic()
    result = await call
    return time.monotonic() - begun, result


def make_plan(args: argparse.Namespace, documents: list[Document], speed: Speed, price: Price | None) -> dict:
    """The target, and the cost of reaching it."""
    lengths = [count_tokens(article_text(document)) for document in documents]
    reply = round(REPLY_SHARE * args.max_tokens)
    fixed_reply = len(documents) * (LIST_TOKENS + args.per_document * QUESTION_TOKENS)
    mean_prompt = sum(lengths) / len(lengths)
    usd_per_call = price.usd(Usage(round(mean_prompt) + 300, 0, reply)) if price else 0.0
    fixed_calls = len(documents) * (1 + args.per_document * CALLS_PER_QUESTION)
    fixed_usd = price.usd(Usage(round(fixed_calls * mean_prompt), 0, fixed_reply)) if price else 0.0
    prefixes = sum(lengths) * (2 if args.per_document else 1)  # once for the passages and once for the quiz
    fixed_s = (prefixes + fixed_calls * TASK_TOKENS) / speed.prompt + fixed_reply / speed.reply
    rate = 1 / (1 / speed.reply + TASK_TOKENS / reply / speed.prompt)  # tokens of passages per second
    tokens = args.tokens or TIMES_CORPUS * sum(lengths)
    if args.budget_usd:
        tokens = min(tokens, int((args.budget_usd - fixed_usd) / usd_per_call) * reply)
    if not price and not args.tokens:
        tokens = min(tokens, int((EVENING_S - fixed_s) * rate))
    if tokens < reply:
        raise UserError(
            f"--budget_usd, --tokens: {max(tokens, 0)} tokens are less than one passage; entities and quiz alone take "
            f"${fixed_usd:.2f} and {fixed_s / 3600:.1f} hours; give more, or fewer documents"
        )
    calls = -(-tokens // reply)
    usd = calls * usd_per_call + fixed_usd
    limit = args.budget_usd or max(FREE_USD, usd * LIMIT_FACTOR)
    return {
        "documents": len(documents),
        "corpus_tokens": sum(lengths),
        "target_tokens": tokens,
        "calls": calls + fixed_calls,
        "usd": round(usd, 2) if price else None,
        "usd_limit": round(limit, 2) if price else None,
        "seconds": round(fixed_s + tokens / rate),
        "prompt_tok_s": round(speed.prompt, 1),
        "reply_tok_s": round(speed.reply, 1),
    }


def count_tokens(text: str) -> int:
    return round(len(text.encode()) / BYTES_PER_TOKEN)


def print_plan(plan: dict) -> None:
    factor = plan["target_tokens"] / plan["corpus_tokens"]
    rows = {
        "documents (sections of long ones)": f"{plan['documents']:,}",
        "tokens of the corpus, about": f"{plan['corpus_tokens']:,}",
        "tokens of the passages": f"{plan['target_tokens']:,} ({factor:.1f} x the corpus)",
        "calls, quiz included": f"{plan['calls']:,}",
        "measured speed, tokens/s": f"prompt {plan['prompt_tok_s']:,}, reply {plan['reply_tok_s']:,}",
        "cost, about": "no price is known" if plan["usd"] is None else f"${plan['usd']:,.2f}",
        "the passages stop at": "no limit" if plan["usd"] is None else f"${plan['usd_limit']:,.2f}",
        "time of the generator": f"{plan['seconds'] / 3600:.1f} h",
    }
    for name, value in rows.items():
        print(f"{name:36}{value}")


def describe(plan: dict) -> str:
    cost = "" if plan["usd"] is None else f", about ${plan['usd']:,.2f}"
    return f"{plan['target_tokens']:,} tokens in {plan['calls']:,} calls, {plan['seconds'] / 3600:.1f} h{cost}"


def confirm(plan: dict, accepted: bool) -> None:
    """Ask on a terminal whether a costly plan is accepted; elsewhere it needs --yes."""
    if accepted or ((plan["usd"] or 0) <= FREE_USD and plan["seconds"] <= FREE_S):
        return
    question = f"This takes {describe(plan)}."
    if not sys.stdin.isatty():
        raise UserError(f"{question} Add --yes to accept it, or give fewer --tokens or a smaller --budget_usd")
    if input(f"{question} Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("not accepted; --tokens and --budget_usd make it smaller")


if __name__ == "__main__":
    run(main)
