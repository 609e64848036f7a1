"""Step 5: questions about the articles, closed book or open -> answers, accuracy.

    python evaluation.py --model_path=ckpts/quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B
    python evaluation.py --task example --protocol loglik --model_path=ckpts/SmolLM2-135M-Instruct
    python evaluation.py --model_path=NAME --base_url http://127.0.0.1:8000/v1     # vLLM and others
    python evaluation.py --model_path=NAME --rag                                   # open book
    python evaluation.py --rag --retrieval_only                                    # the search alone
    python evaluation.py --compare out/qualityqa-A.json out/qualityqa-B.json

The question bears the article's title, author and year, but not its text. `cot` is the paper's
protocol: five worked examples, the model thinks aloud and ends with `Answer: X.`; of the attempts that
can be read --select says which one counts. `loglik` takes the option that the model finds likeliest, per
byte of its text; `letter` shows the options and takes the likeliest of A, B, C and D. Writes
out/qualityqa-<checkpoint>.json; a stopped evaluation goes on where it was. With --rag the passages that
a search finds stand before the question, and the file is out/rag/qualityqa-<checkpoint>-<settings>.json.
"""

import argparse
import json
from pathlib import Path

from inference.retrieval import RETRIEVERS
from tasks import multiple_choice, readers, scoring
from tasks.contamination import print_contamination
from tasks.documents import Item, load_task
from tasks.rag import ORDERS, QUERIES, SEARCH, Retrieved, print_stages, retrieve, search_settings
from tasks.results import (
    build_result,
    describe_protocol,
    fingerprint,
    is_finished,
    output_file,
    print_comparison,
    reselect_attempts,
)
from utils.errors import UserError, run
from utils.io import read_json, write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_path", help="checkpoint folder or hub name; with --base_url the server's name for it")
    add("--compare", type=Path, nargs=2, metavar="FILE", help="outputs of two evaluations: their paired difference")
    add("--task", default="quality", help="quality or example (default quality)")
    add(
        "--corpus",
        type=Path,
        metavar="DIR",
        help="a folder of your own documents (txt, md, jsonl, html, pdf), in place of --task",
    )
    add("--protocol", choices=["cot", "loglik", "letter"], default="cot", help="default cot")
    add(
        "--select",
        choices=[*scoring.SELECTS, "greedy"],
        help="cot: the attempt that counts; greedy asks once, at temperature 0 (default first; the paper: random, of --n_samples 64)",
    )
    add("--few_shot", type=int, help="cot: worked examples before the question (default 5)")
    add(
        "--examples",
        type=Path,
        metavar="FILE",
        help="cot: worked examples of your own, in the form of tasks/prompts/cot_examples.md",
    )
    add("--n_samples", type=int, default=8, help="cot: attempts per question (default 8)")
    add("--temperature", type=float, default=0.1, help="cot: default 0.1; 0 is greedy, one attempt")
    add("--max_tokens", type=int, default=512, help="cot: longest attempt (default 512)")
    add("--batch_size", type=int, default=8, help="questions at once (default 8)")
    add("--base_url", help="an OpenAI-compatible server in place of this machine (cot only)")
    add("--concurrency", type=int, default=32, help="questions under way at a server (default 32)")
    add("--timeout", type=float, default=600.0, help="seconds for one try of a call to a server (default 600)")
    add("--give_up", action="store_true", help="count as wrong what a server fails to answer after all tries")
    add("--seed", type=int, default=0)
    rag = parser.add_argument_group("open book")
    rag.add_argument("--rag", action="store_true", help="put the passages that a search finds before the question")
    rag.add_argument("--retrieval_only", action="store_true", help="how good the search is, without a model")
    rag.add_argument(
        "--retriever", choices=RETRIEVERS, help="by vectors (dense), by words (bm25) or by both (default fusion)"
    )
    rag.add_argument(
        "--embedding",
        metavar="MODEL",
        help="sentence-transformers folder or hub name, or a server's, text-embedding-3-large for one (default: all-MiniLM-L6-v2, which is installed)",
    )
    rag.add_argument("--embedding_url", help="an OpenAI-compatible server for --embedding")
    rag.add_argument(
        "--reranker", metavar="MODEL", help="have a server rank what was found, rerank-english-v3.0 for one"
    )
    rag.add_argument(
        "--rerank_url",
        help="its address, up to /rerank: https://api.cohere.com/v2, or a vLLM's or llama.cpp's; its key is $RERANK_API_KEY",
    )
    rag.add_argument("--chunk_size", type=int, help="characters of a passage (default 1024; the paper: 256, 512, 1024)")
    rag.add_argument("--chunk_overlap", type=int, help="default 0, as in the paper")
    rag.add_argument("--retrieve", type=int, help="passages found, of which the reranker takes the best (default 128)")
    rag.add_argument("--top_k", type=int, help="passages before the question (default 8; the paper: 1 to 16)")
    rag.add_argument("--order", choices=ORDERS, help="of the passages (default best_last)")
    rag.add_argument(
        "--query",
        choices=QUERIES,
        help="search for the question with the article's name and the options (full), or for its text alone",
    )
    parser.set_defaults(**SEARCH)
    args = parser.parse_args()
    if not args.model_path and not args.compare and not args.retrieval_only:
        raise UserError("--model_path: which checkpoint? (or --compare two outputs)")
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what does not go together, and fill in what follows."""
    for name, value in (("select", "first"), ("few_shot", 5), ("examples", None)):
        if args.protocol != "cot" and getattr(args, name) is not None:
            raise UserError(f"--{name}: for --protocol cot")
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    if args.select == "greedy":
        args.temperature = 0.0
    if not args.temperature:
        args.n_samples, args.select = 1, "greedy"  # all would be the same
    if args.protocol != "cot" and args.base_url:
        raise UserError(
            f"--protocol {args.protocol}: servers do not give the likelihood of a text; leave --base_url out"
        )
    if args.few_shot < 0:
        raise UserError(f"--few_shot {args.few_shot}: must not be below 0")
    for name in ("n_samples", "max_tokens", "batch_size", "concurrency", "chunk_size", "retrieve", "top_k"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    if not 0 <= args.chunk_overlap < args.chunk_size:
        raise UserError(f"--chunk_overlap {args.chunk_overlap}: at least 0 and below --chunk_size")
    if not (args.rag or args.retrieval_only):
        given = [name for name, value in SEARCH.items() if getattr(args, name) != value]
        if given:
            raise UserError(f"--{given[0]}: for --rag")
    if args.retriever == "bm25" and args.embedding:
        raise UserError("--embedding: BM25 has no vectors")
    if args.give_up and not args.base_url:
        raise UserError("--give_up: for --base_url")
    if args.top_k > args.retrieve:
        raise UserError(f"--top_k {args.top_k}: more than --retrieve {args.retrieve}")
    if bool(args.reranker) != bool(args.rerank_url):
        raise UserError("--reranker and --rerank_url: one needs the other")
    if args.embedding_url and not args.embedding:
        raise UserError("--embedding_url: which of its models? --embedding")


def main() -> None:
    args = parse_arguments()
    if args.compare:
        print_comparison(args.compare)
        return
    if args.corpus:
        args.task = readers.import_corpus(args.corpus)
    documents = load_task(args.task)
    items = [(document, question) for document in documents for question in document.questions]
    if not items:
        raise UserError(
            f"--task {args.task}: its documents have no questions; python data/make_questions.py writes some"
        )
    found = None
    if args.rag or args.retrieval_only:
        found = retrieve(documents, items, search_settings(args))
        print_stages(found, len(items))
    if args.retrieval_only:
        print(json.dumps({"passages": found.total} | found.stages))
        return
    asked = ask(items, found, args)
    protocol, target = describe_protocol(args, items, asked), output_file(args)
    attempts = reselect_attempts(target, protocol)
    partial = target.with_suffix(f".{fingerprint(protocol)}.partial.jsonl")
    if not attempts and not is_finished(target, protocol):
        from tasks.attempts import collect_attempts

        attempts = collect_attempts(asked, partial, answerer(args))
    if attempts:
        write_json(target, build_result(documents, attempts, protocol, found, args))
        partial.unlink(missing_ok=True)
    result = read_json(target, "run evaluation.py again")
    print_contamination(result)
    print(f"{target}\n{json.dumps(result['metrics'])}")


def ask(items: list[Item], found: Retrieved | None, args: argparse.Namespace) -> list[multiple_choice.PromptedQuestion]:
    asked = []
    for number, (document, question) in enumerate(items):
        passages = [(p.name, p.text) for p in found.passages[number]] if found else []
        prompt = multiple_choice.build_prompt(document, question, args.protocol, args.few_shot, args.examples, passages)
        asked.append(multiple_choice.PromptedQuestion(question.id, prompt, question.options))
    return asked


def answerer(args: argparse.Namespace):
    from tasks.attempts import AttemptSettings

    return AttemptSettings(
        args.protocol,
        args.model_path,
        args.base_url,
        args.n_samples,
        args.temperature,
        args.max_tokens,
        args.batch_size,
        args.seed,
        args.concurrency,
        args.timeout,
        args.give_up,
    )


if __name__ == "__main__":
    run(main)
