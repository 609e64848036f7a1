"""Step 5: closed-book questions about the articles -> answers, accuracy.

    python evaluation.py --model_path=ckpts/quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B
    python evaluation.py --task example --protocol loglik --model_path=ckpts/SmolLM2-135M-Instruct
    python evaluation.py --model_path=NAME --base_url http://127.0.0.1:8000/v1     # vLLM and others
    python evaluation.py --compare out/qualityqa-A.json out/qualityqa-B.json

The question bears the article's title, author and year, but not its text. `cot` is the paper's
protocol: five worked examples, the model thinks aloud and ends with `Answer: X.`; of the attempts that
can be read --select says which one counts. `loglik` takes the option that the model finds likeliest, per
byte of its text; `letter` shows the options and takes the likeliest of A, B, C and D. Writes
out/qualityqa-<checkpoint>.json; a stopped evaluation goes on where it was.
"""

import argparse
import asyncio
import hashlib
import json
import zlib
from pathlib import Path

from tqdm import tqdm

from utils import asking, paths, quality, scoring
from utils.comparison import compare
from utils.io import Journal, UserError, read_json, run, write_json

STOP = "\n###"  # the heading that begins the next worked example
Item = tuple[quality.Document, quality.Question]


def parse_arguments() -> argparse.Namespace:
    # fmt: off
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_path", help="checkpoint folder or hub name; with --base_url the server's name for it")
    add("--compare", type=Path, nargs=2, metavar="FILE", help="outputs of two evaluations: their paired difference")
    add("--task", default="quality", help="quality or example (default quality)")
    add("--protocol", choices=["cot", "loglik", "letter"], default="cot", help="default cot")
    add("--select", choices=[*scoring.SELECTS, "greedy"], help="cot: the attempt that counts; greedy asks once, at temperature 0 (default first; the paper: random, of --n_samples 64)")
    add("--few_shot", type=int, help="cot: worked examples before the question (default 5)")
    add("--examples", type=Path, metavar="FILE", help="cot: worked examples of your own, in the form of utils/prompts/cot_examples.md")
    add("--n_samples", type=int, default=8, help="cot: attempts per question (default 8)")
    add("--temperature", type=float, default=0.1, help="cot: default 0.1; 0 is greedy, one attempt")
    add("--max_tokens", type=int, default=512, help="cot: longest attempt (default 512)")
    add("--batch_size", type=int, default=8, help="questions at once (default 8)")
    add("--base_url", help="an OpenAI-compatible server in place of this machine (cot only)")
    add("--concurrency", type=int, default=32, help="questions under way at a server (default 32)")
    add("--seed", type=int, default=0)
    # fmt: on
    args = parser.parse_args()
    if not args.model_path and not args.compare:
        raise UserError("--model_path: which checkpoint? (or --compare two outputs)")
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
    for name in ("n_samples", "max_tokens", "batch_size", "concurrency"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    return args


def main() -> None:
    args = parse_arguments()
    if args.compare:
        print_comparison(args.compare)
        return
    documents = quality.load_task(args.task)
    items = [(document, question) for document in documents for question in document.questions]
    protocol, target = describe(args, items), paths.evaluation_file(args.model_path)
    if attempts := selected_anew(target, protocol):
        write_json(target, collect(documents, attempts, protocol, args.model_path))
    elif not is_finished(target, protocol):
        partial = target.with_suffix(f".{fingerprint(protocol)}.partial.jsonl")
        attempts = answer_all(items, partial, args)
        write_json(target, collect(documents, attempts, protocol, args.model_path))
        partial.unlink()
    result = read_json(target, "run evaluation.py again")
    print(f"{target}\n{json.dumps(result['metrics'])}")


def describe(args: argparse.Namespace, items: list[Item]) -> dict:
    """What the answers depend on; answers of another description are not used again."""
    asked = [(asked_of(item, args), item[1].options, item[1].gold) for item in items]
    protocol = {
        "name": args.protocol,
        "task": args.task,
        "prompts": fingerprint(asked),
        "weights": paths.weights_state(args.model_path),
    }
    if args.protocol == "cot":
        names = ("n_samples", "temperature", "max_tokens", "seed", "base_url")
        protocol |= {name: getattr(args, name) for name in (*names, "select", "few_shot")}
    if not args.base_url:
        protocol["batch_size"] = args.batch_size  # padding moves the last bits of a sum
    return protocol


def fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:12]


def selected_anew(target: Path, protocol: dict) -> dict[str, list[dict]] | None:
    """The attempts in the file by question id, where they are this evaluation's but for --select: which
    of them counts can be said again without asking again."""
    if not target.is_file():
        return None
    earlier = read_json(target, "delete it")
    if earlier["protocol"] == protocol or earlier["protocol"] | {"select": None} != protocol | {"select": None}:  # fmt: skip
        return None
    questions = (q for document in earlier["documents"] for q in document["questions"])
    return {question["id"]: question["attempts"] for question in questions}


def is_finished(target: Path, protocol: dict) -> bool:
    """Whether the file holds this evaluation. Another one of the same checkpoint is set aside."""
    if not target.is_file():
        return False
    earlier = read_json(target, "delete it").get("protocol")
    if earlier != protocol:
        aside = target.parent / "earlier" / f"{target.stem}.{fingerprint(earlier)}.json"
        aside.parent.mkdir(exist_ok=True)
        target.rename(aside)
        print(f"{target} was of another protocol; it is now {aside}")
    return earlier == protocol


def answer_all(items: list[Item], partial: Path, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Attempts by question id; every batch is in the journal as soon as it is answered."""
    with Journal(partial) as journal:
        attempts = {record["id"]: record["attempts"] for record in journal.records}
        bar = tqdm(total=len(items), initial=len(attempts), desc=args.protocol, unit="question")

        def save(question: quality.Question, answers: list[dict]) -> None:
            attempts[question.id] = answers
            journal.append({"id": question.id, "attempts": answers})
            bar.update()

        with bar:
            if args.base_url:
                asyncio.run(ask_server(items, attempts, args, save))
            else:
                ask_local_model(items, attempts, args, save)
    return attempts


def ask_local_model(items: list[Item], done: dict, args: argparse.Namespace, save) -> None:
    """Batches are cut the same way every time, and one of which a question is missing is answered
    whole: so a resumed evaluation gives what an uninterrupted one does."""
    batches = [items[i : i + args.batch_size] for i in range(0, len(items), args.batch_size)]
    if len(done) == len(items):
        return
    from transformers.utils import logging

    from utils.generate import LocalModel

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = LocalModel(args.model_path)
    for number, batch in enumerate(batches):
        if all(question.id in done for _, question in batch):
            continue
        answer = answer_by_thinking if args.protocol == "cot" else answer_by_likelihood
        answers = answer(model, batch, args, number)
        for (_, question), attempts in zip(batch, answers, strict=True):
            if question.id not in done:
                save(question, attempts)


def answer_by_likelihood(model, batch: list[Item], args: argparse.Namespace, number: int) -> list:
    prompts = [asked_of(item, args) for item in batch]
    continuations = [continuations_of(question, args.protocol) for _, question in batch]
    sums = model.continuation_logprobs(prompts, [[f" {text}" for text in texts] for texts in continuations])  # fmt: skip
    return [
        [likeliest_attempt(question, texts, of_texts)]
        for (_, question), texts, of_texts in zip(batch, continuations, sums, strict=True)
    ]


def continuations_of(question: quality.Question, protocol: str) -> list[str]:
    return list(question.options) if protocol == "loglik" else list(scoring.LETTERS)


def answer_by_thinking(model, batch: list[Item], args: argparse.Namespace, number: int) -> list:
    prompts = [asked_of(item, args) for item in batch]
    seed = args.seed * 1_000_003 + number  # a generator of its own for every batch
    texts = model.complete(prompts, args.n_samples, args.temperature, args.max_tokens, STOP, seed)
    return [[cot_attempt(q, t) for t in of_question] for (_, q), of_question in zip(batch, texts, strict=True)]  # fmt: skip


async def ask_server(items: list[Item], done: dict, args: argparse.Namespace, save) -> None:
    """A question whose call fails does not stop the others; the same command asks it again."""
    from utils.client import Client
    from utils.schedule import for_each
    from utils.wire import CallFailed

    client, failures = Client(args.model_path, args.base_url), []

    async def ask(item: Item) -> None:
        document, question = item
        try:
            texts = await client.complete(
                asked_of(item, args),
                args.n_samples,
                temperature=args.temperature,
                max_tokens=args.max_tokens,
                stop=[STOP],
                seed=args.seed,
            )
            save(question, [cot_attempt(question, text) for text in texts])
        except CallFailed as error:
            failures.append(f"{question.id}: {error}")

    await for_each([item for item in items if item[1].id not in done], ask, args.concurrency)
    await client.close()
    if failures:
        raise UserError(
            f"{len(failures)} questions were not answered (the last, {failures[-1]}); the others are "
            "saved, and the same command asks these again"
        )


def asked_of(item: Item, args: argparse.Namespace) -> str:
    return asking.prompt_of(*item, args.protocol, args.few_shot, args.examples)


def likeliest_attempt(question: quality.Question, texts: list[str], sums: list[float]) -> dict:
    """The text of the highest log-likelihood per byte of it (as lm-evaluation-harness' acc_norm), so that
    a long option is not punished for its length; letters are all of one."""
    scores = [total / len(text.encode()) for total, text in zip(sums, texts, strict=True)]
    return attempt(question, "", scores.index(max(scores))) | {
        "scores": [round(score, 6) for score in scores]
    }


def cot_attempt(question: quality.Question, text: str) -> dict:
    return attempt(question, text, scoring.parse_answer(text))


def attempt(question: quality.Question, reasoning: str, answer: int | None) -> dict:
    content = None if answer is None else question.options[answer]
    return {"reasoning": reasoning, "answer_index": answer, "answer_content": content}


def collect(
    documents: list[quality.Document], attempts: dict[str, list[dict]], protocol: dict, model: str
) -> dict:
    """The whole output file."""
    judged, shown = [], []
    for index, document in enumerate(documents):
        split = quality.split_of(index, len(documents))
        questions = []
        for question in document.questions:
            tries = attempts[question.id]
            read = [attempt["answer_index"] for attempt in tries]
            drawn = [protocol.get("seed", 0), zlib.crc32(question.id.encode())]
            answer = scoring.select(read, protocol.get("select", "first"), drawn)
            judged.append(
                {
                    "document": document.uid,
                    "gold": question.gold,
                    "answer": answer,
                    "hard": question.hard,
                    "split": split,
                }
            )
            questions.append(
                {
                    "id": question.id,
                    "question": question.text,
                    "options": list(question.options),
                    "gold": question.gold,
                    "hard": question.hard,
                    "answer": answer,
                    "attempts": tries,
                }
            )
        shown.append(
            {
                "uid": document.uid,
                "title": document.title,
                "author": document.author,
                "year": document.year,
                "split": split,
                "questions": questions,
            }
        )
    return {
        "protocol": protocol,
        "model": model,
        "metrics": scoring.metrics(judged),
        "documents": shown,
    }


def print_comparison(files: list[Path]) -> None:
    found = compare(*files)
    low, high = found["ci95"]
    first, second = found["accuracies"]
    print(
        f"{files[0]}: {first:.1%}\n{files[1]}: {second:.1%}, of the same {found['n']:,} questions"
    )
    print(f"difference {found['difference']:+.1%} (95%: {low:+.1%} to {high:+.1%}, resampling articles), p = {found['p']:.4f}")  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    run(main)
