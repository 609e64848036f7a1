"""Step 5: closed-book questions about the articles -> answers, accuracy.

    python evaluation.py --model_path=ckpts/quality-lr5e-06-rr0.1-epochs2-bs16-wd0.01-warmup0.05-MetaLlama38B
    python evaluation.py --task example --protocol loglik --model_path=ckpts/SmolLM2-135M-Instruct
    python evaluation.py --model_path=NAME --base_url http://127.0.0.1:8000/v1     # vLLM and others

The question bears the article's title, author and year, but not its text. `cot` is the paper's
protocol: five worked examples, the model thinks aloud and ends with `Answer: X.`; the first attempt
that can be read counts. `loglik` takes the option that the model finds likeliest, per byte of its
text. Writes out/qualityqa-<checkpoint>.json; a stopped evaluation goes on where it was.
"""

import argparse
import asyncio
import hashlib
import json
from pathlib import Path

from tqdm import tqdm

from utils import corpus, paths, quality, scoring
from utils.io import Journal, UserError, read_json, read_text, run, write_json

STOP = "\n###"  # the heading that begins the next worked example
Item = tuple[quality.Document, quality.Question]


def parse_arguments() -> argparse.Namespace:
    # fmt: off
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint folder or hub name; with --base_url the server's name for it")
    add("--task", default="quality", help="quality or example (default quality)")
    add("--protocol", choices=["cot", "loglik"], default="cot", help="default cot")
    add("--n_samples", type=int, default=8, help="cot: attempts per question (default 8)")
    add("--temperature", type=float, default=0.1, help="cot: default 0.1; 0 is greedy, one attempt")
    add("--max_tokens", type=int, default=512, help="cot: longest attempt (default 512)")
    add("--batch_size", type=int, default=8, help="questions at once (default 8)")
    add("--base_url", help="an OpenAI-compatible server in place of this machine (cot only)")
    add("--concurrency", type=int, default=32, help="questions under way at a server (default 32)")
    add("--seed", type=int, default=0)
    # fmt: on
    args = parser.parse_args()
    if not args.temperature:
        args.n_samples = 1  # greedy: all would be the same
    if args.protocol == "loglik" and args.base_url:
        raise UserError(
            "--protocol loglik: servers do not give the likelihood of a text; leave --base_url out"
        )
    for name in ("n_samples", "max_tokens", "batch_size", "concurrency"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least 1")
    return args


def main() -> None:
    args = parse_arguments()
    documents = quality.load_task(args.task)
    items = [(document, question) for document in documents for question in document.questions]
    protocol, target = describe(args, items), paths.evaluation_file(args.model_path)
    if not is_finished(target, protocol):
        partial = target.with_suffix(f".{fingerprint(protocol)}.partial.jsonl")
        attempts = answer_all(items, partial, args)
        write_json(target, collect(documents, attempts, protocol, args.model_path))
        partial.unlink()
    result = read_json(target, "run evaluation.py again")
    print(f"{target}\n{json.dumps(result['metrics'])}")


def describe(args: argparse.Namespace, items: list[Item]) -> dict:
    """What the answers depend on; answers of another description are not used again."""
    asked = [(prompt_of(*item, args.protocol), item[1].options, item[1].gold) for item in items]
    protocol = {
        "name": args.protocol,
        "task": args.task,
        "prompts": fingerprint(asked),
        "weights": paths.weights_state(args.model_path),
    }
    if args.protocol == "cot":
        names = ("n_samples", "temperature", "max_tokens", "seed", "base_url")
        protocol |= {name: getattr(args, name) for name in names} | {"select": "first"}
    if not args.base_url:
        protocol["batch_size"] = args.batch_size  # padding moves the last bits of a sum
    return protocol


def fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:12]


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
        answer = answer_by_loglik if args.protocol == "loglik" else answer_by_thinking
        answers = answer(model, batch, args, number)
        for (_, question), attempts in zip(batch, answers, strict=True):
            if question.id not in done:
                save(question, attempts)


def answer_by_loglik(model, batch: list[Item], args: argparse.Namespace, number: int) -> list:
    prompts = [prompt_of(document, question, "loglik") for document, question in batch]
    options = [[f" {option}" for option in question.options] for _, question in batch]
    sums = model.continuation_logprobs(prompts, options)
    return [[loglik_attempt(q, of_options)] for (_, q), of_options in zip(batch, sums, strict=True)]


def answer_by_thinking(model, batch: list[Item], args: argparse.Namespace, number: int) -> list:
    prompts = [prompt_of(document, question, "cot") for document, question in batch]
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
                prompt_of(document, question, args.protocol),
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


def prompt_of(document: quality.Document, question: quality.Question, protocol: str) -> str:
    filling = {
        "title": document.title,
        "author": document.byline,
        "year": document.year,
        "question": question.text,
    }
    filling |= dict(zip("abcd", question.options, strict=True))
    examples = prompt_file("cot_examples") if protocol == "cot" else ""
    end = "\n" if protocol == "cot" else ""
    return examples + corpus.fill(prompt_file(f"{protocol}_question").rstrip("\n"), filling) + end


def prompt_file(name: str) -> str:
    return read_text(paths.prompts_dir() / f"{name}.md", "it ships with the repository")


def loglik_attempt(question: quality.Question, sums: list[float]) -> dict:
    """The option of the highest log-likelihood per byte of its text (as lm-evaluation-harness'
    acc_norm), so that a long option is not punished for its length."""
    scores = [
        total / len(option.encode()) for total, option in zip(sums, question.options, strict=True)
    ]
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
            answer = next((t["answer_index"] for t in tries if t["answer_index"] is not None), None)
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


if __name__ == "__main__":
    run(main)
