"""Questions answered, by a model in process or by a server: attempts by question id, each at once in a journal."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from inference.client import Client, for_each
from inference.completions import CallFailed
from tasks import scoring
from tasks.multiple_choice import PromptedQuestion
from tasks.scoring import cot_attempt, loglik_attempt, make_attempt
from utils.errors import UserError
from utils.io import Journal

STOP = "\n###"  # the heading that begins the next worked example


@dataclass(frozen=True)
class AttemptSettings:
    """Who answers, and how. `give_up`: what a server still fails to answer after all tries counts as
    an attempt without an answer."""

    protocol: str
    model: str
    base_url: str | None
    samples: int
    temperature: float
    max_tokens: int
    batch_size: int
    seed: int
    concurrency: int
    timeout_s: float
    give_up: bool


def collect_attempts(asked: list[PromptedQuestion], partial: Path, how: AttemptSettings) -> dict[str, list[dict]]:
    """Attempts by question id; every batch is in the journal as soon as it is answered."""

    def is_kept(record: dict) -> bool:
        return how.give_up or not any("error" in attempt for attempt in record["attempts"])

    with Journal(partial, is_kept) as journal:
        attempts = {record["id"]: record["attempts"] for record in journal.records}
        bar = tqdm(total=len(asked), initial=len(attempts), desc=how.protocol, unit="question")

        def save(question: PromptedQuestion, answers: list[dict]) -> None:
            attempts[question.id] = answers
            journal.append({"id": question.id, "attempts": answers})
            bar.update()

        with bar:
            if how.base_url:
                asyncio.run(_ask_server(asked, attempts, how, save))
            else:
                _ask_local_model(asked, attempts, how, save)
    return attempts


def _ask_local_model(asked: list[PromptedQuestion], done: dict, how: AttemptSettings, save: Callable) -> None:
    """Batches are cut the same way every time, and one of which a question is missing is answered
    whole: so a resumed evaluation gives what an uninterrupted one does."""
    batches = [asked[i : i + how.batch_size] for i in range(0, len(asked), how.batch_size)]
    if len(done) == len(asked):
        return
    from transformers.utils import logging

    from inference.local_model import LocalModel

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = LocalModel(how.model)
    for number, batch in enumerate(batches):
        if all(question.id in done for question in batch):
            continue
        answer = _by_thinking if how.protocol == "cot" else _by_likelihood
        answers = answer(model, batch, how, number)
        for question, attempts in zip(batch, answers, strict=True):
            if question.id not in done:
                save(question, attempts)


def _by_likelihood(model, batch: list[PromptedQuestion], how: AttemptSettings, number: int) -> list[list[dict]]:
    texts = [list(q.options if how.protocol == "loglik" else scoring.LETTERS) for q in batch]
    prompts = [question.prompt for question in batch]
    sums = model.continuation_logprobs(prompts, [[f" {text}" for text in row] for row in texts])
    return [[loglik_attempt(*of_one)] for of_one in zip(batch, texts, sums, strict=True)]


def _by_thinking(model, batch: list[PromptedQuestion], how: AttemptSettings, number: int) -> list[list[dict]]:
    prompts = [question.prompt for question in batch]
    seed = how.seed * 1_000_003 + number  # a generator of its own for every batch
    texts = model.complete(prompts, how.samples, how.temperature, how.max_tokens, STOP, seed)
    return [[cot_attempt(q, text) for text in row] for q, row in zip(batch, texts, strict=True)]


async def _ask_server(asked: list[PromptedQuestion], done: dict, how: AttemptSettings, save: Callable) -> None:
    """A question whose call fails does not stop the others; the same command asks it again."""
    client, failures = Client(how.model, how.base_url, timeout_s=how.timeout_s), []
    settings = {"temperature": how.temperature, "max_tokens": how.max_tokens, "stop": [STOP], "seed": how.seed}

    async def ask(question: PromptedQuestion) -> None:
        try:
            texts = await client.complete(question.prompt, how.samples, **settings)
            save(question, [cot_attempt(question, text) for text in texts])
        except CallFailed as error:
            failures.append(f"{question.id}: {error}")
            if how.give_up:
                save(question, [make_attempt(question, "", None) | {"error": str(error)}])

    try:
        await for_each([q for q in asked if q.id not in done], ask, how.concurrency)
    finally:
        await client.close()
    if client.retries:
        tqdm.write(f"{client.retries} calls were made again, after an error, a hang, or a reply that was none")
    if not failures:
        return
    which = f"{len(failures)} questions were not answered (the last, {failures[-1]})"
    if not how.give_up:
        raise UserError(
            f"{which}; the others are saved, and the same command asks these again, or with --give_up counts them as wrong"
        )
    tqdm.write(f"{which}; they count as wrong")
