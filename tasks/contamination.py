"""Which texts stand in the training text word for word."""

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tasks.documents import Document
from utils import paths
from utils.errors import UserError
from utils.io import read_json
from utils.token_file import TokenFile
from utils.tokenizer import load_tokenizer

GRAM = 13  # words, as for GPT-3 (Brown et al. 2020, appendix C)
SHORTEST = 8  # words; of a shorter text nobody can say where it is from
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is lost from a product


def find_contaminated(texts: dict[str, list[str]], training: Iterable[str]) -> set[str]:
    """The keys of `texts` of which one text has 13 words in a row that stand in `training` too; a
    text of 8 to 12 words counts where it stands there whole. Case and punctuation do not matter."""
    vocabulary: dict[str, int] = {}
    wanted: dict[int, dict[int, set[str]]] = {}  # by length and hash
    for key, of_key in texts.items():
        for text in of_key:
            ids = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words_of(text)]
            length = min(GRAM, len(ids))
            if length >= SHORTEST:
                for gram in grams(np.array(ids, np.uint64), length).tolist():
                    wanted.setdefault(length, {}).setdefault(gram, set()).add(key)
    hashes = {length: np.array(sorted(of_length), np.uint64) for length, of_length in wanted.items()}
    found: set[str] = set()
    for text in training:
        # 0 is a word of none of the texts.
        ids = np.array([vocabulary.get(word, 0) for word in words_of(text)], np.uint64)
        for length, of_length in hashes.items():
            for gram in np.intersect1d(grams(ids, length), of_length).tolist():
                found |= wanted[length][gram]
    return found


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def grams(ids: np.ndarray, length: int) -> np.ndarray:
    """The 64-bit hash of every `length` numbers in a row: a polynomial, modulo 2**64."""
    if len(ids) < length:
        return np.empty(0, np.uint64)
    sums = np.zeros(len(ids) - length + 1, np.uint64)
    for offset in range(length):
        sums = sums * BASE + (ids[offset : offset + len(sums)] + np.uint64(1)) * BASE
    return sums


def training_files(checkpoint: str) -> dict[Path, str] | None:
    """The token files, with their sha256, that a checkpoint was trained on, and those before it, as their run.json say;
    None of one that no run.json describes."""
    record = Path(paths.resolve_checkpoint(checkpoint)) / "run.json"
    if not record.is_file():
        return None
    run = read_json(record, "train it again")
    files = {Path(data["file"]): data["sha256"] for name, data in run["data"].items() if name != "held_out"}
    return files | (training_files(run["arguments"]["model_name"]) or {})


def training_text(checkpoint: str, files: dict[Path, str]) -> Iterator[str]:
    """The documents of the files, as text. UserError where one is gone, or not what was trained on."""
    tokenizer = load_tokenizer(checkpoint, "--model_path")
    for path, sha256 in files.items():
        file = TokenFile(path, "run the step that makes it again")
        if file.meta.get("sha256") != sha256:
            raise UserError(f"{path}: was made again since")
        for ids in file.documents():
            yield tokenizer.decode(ids, skip_special_tokens=True)


def contamination_report(checkpoint: str, questions: dict[str, list[str]], right: dict[str, bool]) -> dict | None:
    """How many questions stand in the training text, by their text or their right option, and the
    accuracy without them; None where there is no telling what the checkpoint was trained on.

    questions: the texts by question id; right: whether it was answered rightly.
    """
    files = training_files(checkpoint)
    if files is None:
        return None
    try:
        found = find_contaminated(questions, training_text(checkpoint, files))
    except UserError as error:
        return {"unknown": str(error)}
    others = [answered for id, answered in right.items() if id not in found]
    accuracy = round(sum(others) / len(others), 4) if others else None
    return {
        "training": [file.name for file in files],
        "leaked": sorted(found),
        "n_without": len(others),
        "accuracy_without": accuracy,
    }


def measure_contamination(documents: list[Document], judged: list[dict], args: argparse.Namespace) -> dict | None:
    """What of the questions stands in the training text. A server's checkpoint is looked for here."""
    pass  # XXX import gone

    questions = [question for document in documents for question in document.questions]
    texts = {question.id: [question.text, question.options[question.gold]] for question in questions}
    right = {question["id"]: question["answer"] == question["gold"] for question in judged}
    return contamination_report(args.model_path, texts, right)


def print_contamination(result: dict) -> None:
    found = result.get("leakage")
    if found is None:
        print("leakage: not known, for no run.json says what the model was trained on")
    elif "unknown" in found:
        print(f"leakage: not known ({found['unknown']})")
    else:
        rest = f"; accuracy without them {found['accuracy_without']:.1%}" if found["leaked"] else ""
        print(
            f"leakage: {len(found['leaked'])} of {result['metrics']['n']} questions stand in the training text (13 words in a row){rest}"
        )
