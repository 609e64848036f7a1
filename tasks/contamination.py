"""Contamination: evaluation questions that occur verbatim in the training text."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.documents import Document
from utils import paths
from utils.errors import UserError, name_damage
from utils.io import read_json
from utils.progress import progress_bar
from utils.token_file import TokenFile, choose_documents
from utils.tokenizer import load_tokenizer
from utils.words import words_of

NGRAM_WORDS = 13  # as for GPT-3 (Brown et al. 2020, appendix C)
MIN_WORDS = 8  # shorter texts occur by chance
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication loses no information


def measure_contamination(documents: list[Document], scored: list[dict], checkpoint: str) -> dict | None:
    """The questions whose text or right answer occurs in the checkpoint's training text, and the accuracy (of short
    answers the exact match) without them; None where the training text is unknown.

    `scored`: id, gold and answer, or id and exact_match, of every question. A checkpoint on a server is searched for
    on this machine.
    """
    files = training_files(checkpoint)
    if files is None:
        return None
    questions = [question for document in documents for question in document.questions]
    texts = {question.id: [question.text, question.answer] for question in questions}
    try:
        contaminated = find_contaminated(texts, training_text(checkpoint, files))
    except UserError as error:
        return {"unknown": str(error)}
    clean = [is_right(question) for question in scored if question["id"] not in contaminated]
    return {
        "training": [file.name for file in files],
        "leaked": sorted(contaminated),
        "n_without": len(clean),
        "accuracy_without": round(sum(clean) / len(clean), 4) if clean else None,
    }


def is_right(question: dict) -> bool:
    """True if a scored question, of several options or of a short answer, is answered correctly."""
    return bool(question["exact_match"]) if "exact_match" in question else question["answer"] == question["gold"]


def print_contamination(result: dict) -> None:
    """Print the `leakage` entry of an evaluation's output."""
    report = result.get("leakage")
    if report is None:
        print("contamination: unknown, as no run.json describes the training text")
    elif "unknown" in report:
        print(f"contamination: unknown ({report['unknown']})")
    else:
        without = report["accuracy_without"]
        accuracy = "; no other question is left" if without is None else f"; accuracy without them {without:.1%}"
        accuracy = accuracy if report["leaked"] else ""
        counts = f"{len(report['leaked'])} of {result['metrics']['n']} questions"
        print(f"contamination: {counts} occur in the training text ({NGRAM_WORDS} consecutive words){accuracy}")


@dataclass(frozen=True)
class TrainedFile:
    """A token file that a checkpoint was trained on: its hash, and the fraction and seed of the documents used."""

    sha256: str
    subsample_ratio: float = 1.0
    seed: int = 0


def training_files(checkpoint: str) -> dict[Path, TrainedFile] | None:
    """Token files of a checkpoint's training and its predecessors'; None without a run.json."""
    folder = Path(paths.resolve_checkpoint(checkpoint))
    if not folder.is_absolute() or not (record := folder / "run.json").is_file():
        return None
    run = read_json(record, "train it again")
    with name_damage(record, "train it again"):
        return _files_of_run(run)


def _files_of_run(run: dict) -> dict[Path, TrainedFile]:
    subsample = float(run["arguments"].get("subsample_ratio", 1)), run["arguments"].get("seed", 0)
    files = {
        Path(data["file"]): TrainedFile(data["sha256"], *(subsample if role == "train" else ()))
        for role, data in run["data"].items()
        if role != "held_out"
    }
    for path, earlier in (training_files(run["arguments"]["model_name"]) or {}).items():
        mine = files.setdefault(path, earlier)
        if mine.seed != earlier.seed and mine.sha256 == earlier.sha256:
            files[path] = TrainedFile(mine.sha256)  # two samples: at most the whole file
        elif mine.subsample_ratio < earlier.subsample_ratio:
            files[path] = earlier  # samples of one seed are nested
    return files


def training_text(checkpoint: str, files: dict[Path, TrainedFile]) -> Iterator[str]:
    """The documents of token files that were trained on, as text. Raises UserError where a file is missing or was
    replaced."""
    tokenizer = load_tokenizer(checkpoint, "--model_path")
    for path, trained in files.items():
        file = TokenFile(path, "run the step that makes it again")
        if file.meta.get("sha256") != trained.sha256:
            raise UserError(f"{path}: was replaced after training")
        chosen = choose_documents(len(file.ends), trained.subsample_ratio, trained.seed)
        documents = itertools.compress(file.documents(), chosen)
        name = f"contamination, {path.stem}"
        for ids in progress_bar(iterable=documents, total=int(chosen.sum()), desc=name, unit="document"):
            yield tokenizer.decode(ids, skip_special_tokens=True)


def find_contaminated(texts: dict[str, list[str]], training: Iterable[str]) -> set[str]:
    """The keys of `texts` with a text of which NGRAM_WORDS consecutive words occur in `training`. Texts of MIN_WORDS
    to NGRAM_WORDS - 1 words must occur as a whole. Case and punctuation are ignored; in Chinese and other scripts
    without spaces a word is a character."""
    vocabulary: dict[str, int] = {}
    wanted: dict[int, dict[int, set[str]]] = {}  # length -> hash -> keys
    for key, text in ((key, text) for key, group in texts.items() for text in group):
        ids = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words_of(text)]
        length = min(NGRAM_WORDS, len(ids))
        if length >= MIN_WORDS:
            for ngram in ngram_hashes(np.array(ids, np.uint64), length).tolist():
                wanted.setdefault(length, {}).setdefault(ngram, set()).add(key)
    hashes = {length: np.array(sorted(keys), np.uint64) for length, keys in wanted.items()}
    contaminated: set[str] = set()
    for text in training:
        ids = np.array([vocabulary.get(word, 0) for word in words_of(text)], np.uint64)  # 0: in none of the texts
        for length, known in hashes.items():
            for ngram in np.intersect1d(ngram_hashes(ids, length), known).tolist():
                contaminated |= wanted[length][ngram]
    return contaminated


def ngram_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """The 64-bit polynomial hash, modulo 2**64, of every `length` consecutive ids."""
    if len(ids) < length:
        return np.empty(0, np.uint64)
    sums = np.zeros(len(ids) - length + 1, np.uint64)
    for offset in range(length):
        sums = sums * HASH_BASE + (ids[offset : offset + len(sums)] + np.uint64(1)) * HASH_BASE
    return sums
