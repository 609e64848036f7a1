"""Ask every question and journal each attempt as it arrives."""

import asyncio
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from inference.client import SEED_STEP, Client
from inference.completions import CallFailed
from inference.parallel import for_each
from inference.served_model import ServedModel, identify_by_completion, own_records
from tasks import scoring, short_answers
from tasks.documents import Item
from tasks.multiple_choice import PromptedQuestion, build_prompt
from tasks.rag import Retrieved
from utils.cli import settings_from_args, silence_transformers
from utils.errors import UserError, name_damage
from utils.io import Journal
from utils.progress import progress_bar, working

DEFAULT_FEW_SHOT = 5
MAX_TOKENS = {"short": 32}  # of an attempt, unless --max_tokens says otherwise
DEFAULT_MAX_TOKENS = 512
# What ends an attempt: the heading of the next worked example; the line of a short answer.
STOP = {"cot": "\n###", "short": "\n"}
READ_ATTEMPT = {"cot": scoring.cot_attempt, "short": short_answers.short_attempt}
Questions = list[PromptedQuestion]


@dataclass(frozen=True)
class AttemptSettings:
    """Protocol, model or server, and sampling. Short answers are greedy."""

    task: str
    model: str
    protocol: str  # cot, loglik or letter; short for short answers
    select: str  # cot: the attempt that counts
    few_shot: int
    examples: Path | None
    n_samples: int  # attempts per question
    temperature: float
    max_tokens: int
    batch_size: int
    seed: int
    base_url: str | None
    concurrency: int
    timeout_s: float
    max_wait_s: float
    give_up: bool  # score a question that the server fails to answer as wrong

    @classmethod
    def from_args(cls, args: Namespace, task: str) -> "AttemptSettings":
        """From the options of evaluation.py. At temperature 0 all attempts are equal, so there is one."""
        protocol = "short" if args.kind == "short" else args.protocol or "cot"
        greedy = args.select == "greedy" or not args.temperature or protocol == "short"
        samples = args.n_samples if protocol == "cot" and not greedy else 1
        return settings_from_args(
            cls,
            args,
            task=task,
            model=args.model_path,
            protocol=protocol,
            max_tokens=args.max_tokens or MAX_TOKENS.get(protocol, DEFAULT_MAX_TOKENS),
            select="greedy" if greedy else args.select or "first",
            few_shot=DEFAULT_FEW_SHOT if args.few_shot is None else args.few_shot,
            timeout_s=args.timeout,
            max_wait_s=args.max_wait,
            n_samples=samples,
            **{"temperature": 0.0} if greedy else {},
        )


def prompt_questions(items: list[Item], settings: AttemptSettings, retrieved: Retrieved | None) -> Questions:
    prompted = []
    for number, (document, question) in enumerate(items):
        chunks = [(chunk.name, chunk.text) for chunk in retrieved.chunks[number]] if retrieved else []
        options = {"examples": settings.examples, "chunks": chunks}
        prompt = build_prompt(document, question, settings.protocol, settings.few_shot, **options)
        prompted.append(PromptedQuestion(question.id, prompt, question.options))
    return prompted


def make_client(settings: AttemptSettings) -> Client:
    times = {"timeout_s": settings.timeout_s, "max_wait_s": settings.max_wait_s}
    return Client(settings.model, settings.base_url, **times)


def identify_server(settings: AttemptSettings) -> ServedModel:
    """Identity of the served model, before its first question."""

    async def ask() -> ServedModel:
        client = make_client(settings)
        try:
            return await identify_by_completion(client, "--base_url")
        finally:
            await client.close()

    return asyncio.run(ask())


def collect_attempts(
    questions: Questions, partial: Path, settings: AttemptSettings, served: ServedModel | None
) -> dict[str, list[dict]]:
    """Attempts by question id. Those of every reply are in the journal `partial` as soon as it is here."""

    def keep(record: dict) -> bool:
        with name_damage(partial, "delete it, and these questions are asked again"):
            return settings.give_up or not any("error" in attempt for attempt in record.get("attempts", ()))

    with Journal(partial, keep) as journal:
        records = own_records(journal, served) if served else journal.records
        with name_damage(partial, "delete it, and these questions are asked again"):
            attempts = read_attempts(records, questions)
        total, done = len(questions), sum(is_complete(answers, settings) for answers in attempts.values())
        model = load_local_model(settings.model) if done < total and not settings.base_url else None
        bar = progress_bar(total=total, initial=done, desc=settings.protocol, unit="question", leave=True)

        def save(question: PromptedQuestion, answers: list[dict]) -> None:
            attempts[question.id] += answers
            journal.append({"id": question.id, "attempts": answers})
            bar.update(is_complete(attempts[question.id], settings))

        with bar:
            if settings.base_url:
                asyncio.run(_ask_server(questions, attempts, settings, save))
            elif model:
                _ask_local_model(model, questions, attempts, settings, save)
    return attempts


def read_attempts(records: list[dict], questions: Questions) -> dict[str, list[dict]]:
    """The journaled attempts of all questions by id, some none; a question has a record per reply."""
    asked, attempts = {question.id: question for question in questions}, {question.id: [] for question in questions}
    for record in records:
        id = record["id"]
        attempts[id] += [scoring.reparse_attempt(asked[id], attempt) for attempt in record["attempts"]]
    return attempts


def is_complete(attempts: list[dict], settings: AttemptSettings) -> bool:
    """True if a question needs no further attempts: it has all, or one of them failed (--give_up)."""
    return len(attempts) >= settings.n_samples or any("error" in attempt for attempt in attempts)


def load_local_model(name: str):
    with working("starting torch"):
        from inference.local_model import LocalModel

    silence_transformers()
    return LocalModel(name)


def _ask_local_model(model, questions: Questions, done: dict, settings: AttemptSettings, save: Callable) -> None:
    """Batches are the same in every run, and a batch with a missing question is answered as a whole, so that a
    resumed evaluation gives the same answers as an uninterrupted one."""
    answer = _sample_attempts if settings.protocol in READ_ATTEMPT else _score_options
    size = settings.batch_size
    for number, start in enumerate(range(0, len(questions), size)):
        batch = questions[start : start + size]
        if all(done[question.id] for question in batch):
            continue
        for question, attempts in zip(batch, answer(model, batch, settings, number), strict=True):
            if not done[question.id]:
                save(question, attempts)


def _score_options(model, batch: Questions, settings: AttemptSettings, number: int) -> list[list[dict]]:
    """The most likely option of each question, in the protocols loglik and letter."""
    texts = [list(q.options if settings.protocol == "loglik" else scoring.LETTERS) for q in batch]
    prompts = [question.prompt for question in batch]
    sums = model.continuation_logprobs(prompts, [[f" {text}" for text in row] for row in texts])
    return [[scoring.loglik_attempt(*row)] for row in zip(batch, texts, sums, strict=True)]


def _sample_attempts(model, batch: Questions, settings: AttemptSettings, number: int) -> list[list[dict]]:
    prompts, read = [question.prompt for question in batch], READ_ATTEMPT[settings.protocol]
    seed, stop = settings.seed * 1_000_003 + number, STOP[settings.protocol]
    texts = model.complete(prompts, settings.n_samples, settings.temperature, settings.max_tokens, stop, seed)
    return [[read(q, text) for text in row] for q, row in zip(batch, texts, strict=True)]


async def _ask_server(questions: Questions, done: dict, settings: AttemptSettings, save: Callable) -> None:
    """Ask for the attempts that `done` lacks. A failed call does not stop the others."""
    client, failures = make_client(settings), []
    sampling = {
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "stop": [STOP[settings.protocol]],
    }
    read = READ_ATTEMPT[settings.protocol]

    async def ask(question: PromptedQuestion) -> None:
        def save_texts(texts: list[str]) -> None:
            save(question, [read(question, text) for text in texts])

        earlier = len(done[question.id])
        seed = settings.seed + earlier * SEED_STEP  # none is asked for twice with one seed
        try:
            await client.complete(question.prompt, settings.n_samples - earlier, save=save_texts, **sampling, seed=seed)
        except CallFailed as error:
            failures.append(f"{question.id}: {error}")
            if settings.give_up:
                save(question, [scoring.make_attempt(question, "", None) | {"error": str(error)}])
            client.check_context()

    try:
        missing = [question for question in questions if not is_complete(done[question.id], settings)]
        await for_each(missing, ask, settings.concurrency)
    finally:
        await client.close()
    if client.retries:
        tqdm.write(f"{client.retries} calls were repeated after an error, a timeout or an unusable reply")
    if failures:
        _report_failures(failures, settings.give_up)


def _report_failures(failures: list[str], give_up: bool) -> None:
    summary = f"{len(failures)} questions were not answered (the last, {failures[-1]})"
    if not give_up:
        raise UserError(
            f"{summary}; the other answers are saved, and the same command asks these questions again, or scores them "
            "as wrong with --give_up"
        )
    tqdm.write(f"{summary}; they are scored as wrong")
