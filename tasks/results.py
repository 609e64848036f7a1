"""Output files of evaluation.py: protocol, reuse of earlier answers, content."""

import glob
import sys
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from inference.keys import Address
from inference.served_model import OTHER_MODEL, ServedModel, journal_of, own_records
from tasks import scoring, short_answers
from tasks.attempts import AttemptSettings
from tasks.contamination import measure_contamination
from tasks.documents import Document, Item, Question, ShortQuestion, split_of
from tasks.intervals import accuracy_interval
from tasks.multiple_choice import PromptedQuestion
from tasks.rag import Retrieved, SearchSettings
from utils import paths
from utils.errors import name_damage
from utils.io import Journal, blocking_lock, json_digest, read_json, sha256_file, write_json

UNKNOWN_MODEL = "the earlier answers may be of another model of this name; they are used"
SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")


def output_file(settings: AttemptSettings, search: SearchSettings | None) -> Path:
    kind = "short" if settings.protocol == "short" else "choice"
    if not search:
        return paths.evaluation_file(settings.model, kind=kind)
    variant = f"t{settings.temperature:g}" if settings.protocol == "cot" else settings.protocol
    return paths.evaluation_file(settings.model, search.name if kind == "short" else f"{search.name}-{variant}", kind)


def describe_protocol(
    settings: AttemptSettings, search: SearchSettings | None, items: list[Item], prompted: list[PromptedQuestion]
) -> dict:
    """Everything that the answers depend on, except for the served model, which is added as `server`; answers of
    another protocol are not reused."""
    rights = [question.answers if settings.protocol == "short" else question.gold for _, question in items]
    asked = [(one.prompt, one.options, right) for one, right in zip(prompted, rights, strict=True)]
    protocol = {
        "name": settings.protocol,
        "task": settings.task,
        "prompts": json_digest(asked),
        "weights": paths.weights_state(settings.model),
    }
    if files := small_files(settings.model):
        protocol["files"] = files
    if settings.protocol == "cot":
        names = ("n_samples", "temperature", "max_tokens", "seed", "base_url", "select", "few_shot")
        protocol |= {name: getattr(settings, name) for name in names}
    if settings.protocol == "short":
        protocol |= {name: getattr(settings, name) for name in ("max_tokens", "few_shot")}
    if settings.base_url:
        protocol["base_url"] = Address.parse(settings.base_url).public
    if not settings.base_url:
        protocol["batch_size"] = settings.batch_size  # it changes the last bits of sums
    if search:
        protocol["search"] = asdict(search)
        for name in ("embedding_url", "rerank_url"):
            url = protocol["search"][name]
            protocol["search"][name] = url and Address.parse(url).public
    return protocol


def small_files(model: str) -> dict[str, str]:
    """Hashes of a checkpoint folder's configuration and tokenizer, which decide the answers as the weights do."""
    files = {name: Path(paths.resolve_checkpoint(model)) / name for name in SMALL_FILES}
    return {name: sha256_file(path)[:16] for name, path in files.items() if path.is_file()}


def partial_file(target: Path, protocol: dict, served: ServedModel | None) -> Path:
    """The journal of an unfinished evaluation; its attempts do not depend on `select`."""
    path = target.with_suffix(f".{json_digest(protocol | {'select': None})}.partial.jsonl")
    return journal_of(path, served, print_notes, lambda _: None) if served else path


def is_same(earlier: dict, protocol: dict, served: ServedModel | None) -> bool:
    """True if two protocols are the same and the same model answered, as far as that is known. Protocols of earlier
    versions do not hold the checkpoint's small files."""
    known = protocol if "files" in earlier else {name: value for name, value in protocol.items() if name != "files"}
    if without_server(earlier) != without_server(known):
        return False
    same = served.is_same(earlier.get("server")) if served else True
    if same is None and served.fixed is not None:
        print_notes([f"{served.model}: {UNKNOWN_MODEL}"])
    if same is False:
        print_notes([f"{served.model}: {OTHER_MODEL}"])
    return same is not False


def without_server(protocol: dict) -> dict:
    return {name: value for name, value in protocol.items() if name != "server"}


def print_notes(notes: list[str]) -> None:
    print("\n".join(notes), file=sys.stderr)


def reselect_attempts(
    target: Path, protocol: dict, served: ServedModel | None, partial: Path, give_up: bool
) -> dict[str, list[dict]] | None:
    """The attempts by question id of the output file, or of one in earlier/, whose protocol differs in `select` only."""
    others = sorted((target.parent / "earlier").glob(f"{glob.escape(target.stem)}.*.json"))
    for file in (target, *others):
        if not file.is_file() or not differs_in_select(file, protocol, served):
            continue
        if is_settled(file, partial, served, give_up):
            return attempts_of(read_json(file, "delete it"))
    return None


def differs_in_select(file: Path, protocol: dict, served: ServedModel | None) -> bool:
    earlier = read_json(file, "delete it")
    with name_damage(file, "delete it"):
        if earlier["protocol"].get("select") == protocol.get("select"):
            return False
        return is_same(earlier["protocol"] | {"select": None}, protocol | {"select": None}, served)


def attempts_of(result: dict) -> dict[str, list[dict]]:
    return {
        question["id"]: question["attempts"] for document in result["documents"] for question in document["questions"]
    }


def reopen(target: Path, partial: Path, served: ServedModel | None) -> bool:
    """True if an output has questions that failed (--give_up): its other answers are in the journal then."""
    with name_damage(target, "delete it"):
        attempts = attempts_of(read_json(target, "delete it"))
        answered = {id: [one for one in answers if "error" not in one] for id, answers in attempts.items()}
        failed = sum(answered[id] != answers for id, answers in attempts.items())
    if not failed or not served:
        return False
    print_notes([f"{target}: {failed} questions that failed are asked again"])
    with Journal(partial) as journal, name_damage(partial, "delete it"):
        known = {record["id"] for record in own_records(journal, served)}
        for id, answers in answered.items():
            if id not in known and answers:
                journal.append({"id": id, "attempts": answers})
    return True


def is_finished(target: Path, protocol: dict, served: ServedModel | None, partial: Path, give_up: bool) -> bool:
    """True if the output file holds this evaluation, and nothing is to be asked for."""
    return find_output(target, protocol, served) and is_settled(target, partial, served, give_up)


def is_settled(file: Path, partial: Path, served: ServedModel | None, give_up: bool) -> bool:
    """True if no question of an output failed, or those that did may (`give_up`) and none was asked again since."""
    return (give_up and not partial.exists()) or not reopen(file, partial, served)


def find_output(target: Path, protocol: dict, served: ServedModel | None) -> bool:
    """True if the output file holds this evaluation. The output of another protocol, or of another model behind the
    same name, is moved to earlier/, and moved back when that one is evaluated again."""
    earlier = read_json(target, "delete it").get("protocol") if target.is_file() else None
    if earlier and is_same(earlier, protocol, served):
        return True
    if earlier:
        archive = archived_file(target, earlier)
        archive.parent.mkdir(exist_ok=True)
        target.rename(archive)
        print(f"{target} has another protocol; moved to {archive}")
    for archive in (archived_file(target, protocol), archived_file(target, without_server(protocol))):
        if archive.is_file():
            archive.rename(target)
            if archive != archived_file(target, protocol):
                print_notes([f"{archive}: {UNKNOWN_MODEL}"])
            return True
    return False


def write(target: Path, result: dict, served: ServedModel | None) -> None:
    """Write an output file. One of another protocol, perhaps by another process, is moved to earlier/ first."""
    with blocking_lock(target.parent / ".evaluations.lock", "another evaluation"):
        find_output(target, result["protocol"], served)
        write_json(target, result)


def read_result(target: Path) -> dict:
    """The content of an output file, whose interval is replaced by that of this version: until November 2026 it was a
    bootstrap percentile interval, too narrow with few documents."""
    result = read_json(target, "run evaluation.py again")
    with name_damage(target, "delete it and run evaluation.py again"):
        return _with_present_interval(target, result)


def _with_present_interval(target: Path, result: dict) -> dict:
    questions = [(document["uid"], q) for document in result["documents"] for q in document["questions"]]
    if "f1" not in result["metrics"] and all("answer" in question for _, question in questions):
        right = np.array([question["answer"] == question["gold"] for _, question in questions], float)
        interval = accuracy_interval(right, [uid for uid, _ in questions])
        if interval != result["metrics"]["ci95"]:
            result["metrics"]["ci95"] = interval
            write_json(target, result)
    return result


def archived_file(target: Path, protocol: dict) -> Path:
    return target.parent / "earlier" / f"{target.stem}.{json_digest(protocol)}.json"


def build_result(
    documents: list[Document], attempts: dict[str, list[dict]], protocol: dict, model: str, retrieved: Retrieved | None
) -> dict:
    """The content of the output file."""
    scored, entries, chunks = [], [], iter(retrieved.chunks if retrieved else ())
    for index, document in enumerate(documents):
        split, questions = split_of(index, len(documents)), []
        for question in document.questions:
            choices, score = score_question(question, attempts[question.id], protocol)
            scored.append({"id": question.id, "document": document.uid, "split": split} | score)
            entry = {"id": question.id, "question": question.text} | choices
            if retrieved:  # in prompt order
                entry["passages"] = [[chunk.source, chunk.number] for chunk in next(chunks)]
            questions.append(entry | score | {"attempts": attempts[question.id]})
        head = {name: getattr(document, name) for name in ("uid", "title", "author", "year")}
        entries.append(head | {"split": split, "questions": questions})
    metrics = short_answers.metrics if protocol["name"] == "short" else scoring.metrics
    result = {"protocol": protocol, "model": model, "metrics": metrics(scored)}
    if retrieved:
        result["retrieval"] = {"passages": retrieved.total} | retrieved.stages
    return result | {"leakage": measure_contamination(documents, scored, model), "documents": entries}


def score_question(question: Question | ShortQuestion, attempts: list[dict], protocol: dict) -> tuple[dict, dict]:
    """The options of a question, or its right answers, and the score of its attempts."""
    if isinstance(question, ShortQuestion):
        return {"answers": list(question.answers)}, short_answers.score(question, attempts)
    answer = select_answer(question.id, attempts, protocol)
    return {"options": list(question.options)}, {"gold": question.gold, "hard": question.hard, "answer": answer}


def select_answer(question_id: str, attempts: list[dict], protocol: dict) -> int | None:
    answers = [attempt["answer_index"] for attempt in attempts]
    seed = [protocol.get("seed", 0), zlib.crc32(question_id.encode())]
    return scoring.select(answers, protocol.get("select", "first"), seed)


def describe_metrics(metrics: dict) -> str:
    """`accuracy 57.1% (46.4%–67.9%) of 84 questions`, or exact match and F1 of short answers."""
    measures = [("exact_match", "ci95"), ("f1", "f1_ci95")] if "f1" in metrics else [("accuracy", "ci95")]
    words = {"exact_match": "exact match", "f1": "F1"}
    parts = []
    for name, interval in measures:
        low, high = metrics[interval]
        parts.append(f"{words.get(name, name)} {metrics[name]:.1%} ({low:.1%} to {high:.1%})")
    return f"{', '.join(parts)} of {metrics['n']:,} questions"
