"""Step 5: questions about the articles, closed book or open book -> answers and accuracy.

    python evaluation.py --model_path=ckpts/quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B
    python evaluation.py --task example --protocol loglik --model_path=ckpts/SmolLM2-135M-Instruct
    python evaluation.py --model_path=NAME --base_url http://127.0.0.1:8000/v1     # vLLM and other servers
    python evaluation.py --model_path=NAME --rag                                   # open book
    python evaluation.py --rag --retrieval_only                                    # the search alone
    python evaluation.py --task NAME --kind short --model_path=NAME                # short answers
    python evaluation.py --compare out/qualityqa-A.json out/qualityqa-B.json

A question names the article's title, author and year. Protocols: `cot` is the paper's (five worked examples; the
model reasons and ends with `Answer: X.`; --select chooses among the attempts), `loglik` takes the option with the
highest log-likelihood per byte, `letter` shows the options and takes the most likely of A, B, C and D. With --kind
short there are no options: the model writes one line, scored by exact match and token F1 under SQuAD's rules.

Writes out/qualityqa-<checkpoint>.json, with --rag out/rag/qualityqa-<checkpoint>-<settings>.json; for short answers
shortqa instead of qualityqa. The same command resumes an interrupted evaluation.
"""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tasks import comparison, rag, readers, results
from tasks.attempts import AttemptSettings, collect_attempts, identify_server, prompt_questions
from tasks.contamination import print_contamination
from tasks.documents import load_task
from tasks.scoring import SELECTION_RULES
from utils import cli
from utils.cli import add_wait_flag, call_count, non_negative_float, non_negative_int, positive_float, positive_int
from utils.errors import RESUMES, UserError, run


def parse_arguments() -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model_path", help="checkpoint folder or hub name; with --base_url the server's model name")
    compare_help = "print the paired difference of two evaluations"
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE", help=compare_help)
    cli.add_corpus_flags(parser)
    add_protocol_arguments(parser)
    add_server_arguments(parser)
    rag.add_search_arguments(parser)
    args = parser.parse_args()
    validate(args)
    refuse_unused(parser, args)
    return args


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("protocol")
    add = group.add_argument
    add("--kind", choices=["choice", "short"], default="choice", help="questions with options, or with short answers")
    add("--protocol", choices=["cot", "loglik", "letter"], help="see above (default: cot)")
    select_help = "cot: the attempt that counts (default: first; the paper: random, of 64); greedy asks once"
    add("--select", choices=[*SELECTION_RULES, "greedy"], help=select_help)
    add("--few_shot", type=non_negative_int, help="cot, short: worked examples before the question (default: 5)")
    examples_help = "your own worked examples, in the format of tasks/prompts/cot_examples.md or short_examples.md"
    add("--examples", type=Path, metavar="FILE", help=examples_help)
    add("--n_samples", type=call_count, default=8, help="cot: attempts per question")
    add("--temperature", type=non_negative_float, default=0.1, help="cot: 0 is greedy, with one attempt")
    add("--max_tokens", type=positive_int, help="maximum tokens per attempt (default: cot 512, short answers 32)")
    add("--batch_size", type=positive_int, default=8, help="questions per batch")
    cli.add_seed_flag(group, "of sampling and of --select random")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    cli.add_base_url_flag(group, "an OpenAI-compatible server to ask instead of loading the model (cot only)")
    group.add_argument("--concurrency", type=call_count, default=32, help="questions in flight")
    group.add_argument("--timeout", type=positive_float, default=600.0, help="seconds per try of a call")
    add_wait_flag(group)
    group.add_argument("--give_up", action="store_true", help="score questions that the server fails at as wrong")


def validate(args: argparse.Namespace) -> None:
    if not args.model_path and not args.compare and not args.retrieval_only:
        raise UserError("--model_path: name a checkpoint (or --compare two outputs)")
    for name in ("protocol", "select") if args.kind == "short" else ("select", "few_shot", "examples"):
        allowed = args.kind == "choice" and args.protocol in (None, "cot")
        if not allowed and getattr(args, name) is not None:
            raise UserError(f"--{name}: for {'--kind choice' if args.kind == 'short' else '--protocol cot'}")
    if args.protocol not in (None, "cot") and args.base_url:
        raise UserError(f"--protocol {args.protocol}: servers do not return the likelihood of a text; omit --base_url")
    rag.validate_search(args)


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Raise UserError for an option without effect."""
    refuse = partial(cli.refuse_without_effect, parser, args)
    if args.compare:
        refuse(" ".join(vars(args).keys() - {"compare"}), "with --compare")
    if not args.temperature and args.select != "greedy":
        refuse("n_samples select", "at temperature 0, where all attempts are equal")
    if args.protocol in ("loglik", "letter"):
        refuse("n_samples temperature max_tokens", f"with --protocol {args.protocol}")
    if args.kind == "short" or args.select == "greedy":
        refuse("n_samples temperature", "with one greedy attempt")
    if args.base_url:
        refuse("batch_size", "with --base_url")
    else:
        refuse("concurrency timeout max_wait give_up", "without --base_url")
    if not args.corpus:
        refuse("strict", "without --corpus")


def main() -> None:
    args = parse_arguments()
    if args.compare:
        comparison.print_comparison(args.compare)
    else:
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    task = readers.import_corpus(args.corpus, args.strict) if args.corpus else args.task
    documents = load_task(task, args.kind)
    items = [(document, question) for document in documents for question in document.questions]
    if not items:
        kind = " --kind short" if args.kind == "short" else ""
        raise UserError(f"--task {task}: its documents have no questions; run: python data/make_questions.py{kind}")
    search = cli.settings_from_args(rag.SearchSettings, args) if args.rag or args.retrieval_only else None
    retrieved = rag.retrieve(documents, items, search) if search else None
    if retrieved:
        rag.print_recall(retrieved, len(items), args.retrieval_only)
    if args.retrieval_only:
        return
    settings = AttemptSettings.from_args(args, task)
    prompted = prompt_questions(items, settings, retrieved)
    protocol = results.describe_protocol(settings, search, items, prompted)
    target = results.output_file(settings, search)
    served = identify_server(settings) if settings.base_url else None
    partial = results.partial_file(target, protocol, served)
    protocol |= {"server": asdict(served)} if served else {}
    attempts = results.reselect_attempts(target, protocol, served, partial, settings.give_up)
    if not attempts and not results.is_finished(target, protocol, served, partial, settings.give_up):
        attempts = collect_attempts(prompted, partial, settings, served)
    if attempts:
        result = results.build_result(documents, attempts, protocol, settings.model, retrieved)
        results.write(target, result, served)
    partial.unlink(missing_ok=True)
    metrics = (result := results.read_result(target))["metrics"]
    print_contamination(result)
    cli.print_result(metrics | {"file": str(target)}, f"{results.describe_metrics(metrics)} -> {target}")


if __name__ == "__main__":
    run(main, RESUMES)
