"""Sentences that a document does not support, found among the shipped passages with planted errors."""

import json
import random
import re

import pytest

from data.generation.passages import training_text
from data.generation.support import CAPITALISED, MARKUP, Source
from tasks.documents import Document, load_task
from utils import paths
from utils.sentences import split_sentences

DOCUMENT = Document(
    "u", "The Lamp", "Doe, Jo", "1968", "Ada kept it for thirty-nine years. It cost 1,200 marks in 1859."
)


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("Ada kept the lamp for 39 years.", ""),
        ("In 1968 Jo Doe wrote of it.", ""),
        ("It cost 1200 marks.", ""),
        ("Ada kept it for 40 years.", "40 is not in the document"),
        ("The keeper was Berta.", "Berta is not in the document"),
        ("Harbour pilots seldom praised those wooden rowing boats.", "few of its words are in the document"),
        ("Perhaps.", ""),
    ],
)
def test_names_numbers_and_words(sentence, reason):
    assert Source(DOCUMENT).fault(sentence) == reason


def test_headings_and_list_marks_are_no_sentences():
    passage = "## Berta and 77\n\nAda kept it.\n\n- Ada kept it for years.\n3. It cost 1,200 marks."
    assert Source(DOCUMENT).check(passage) == (3, [])


@pytest.fixture(scope="module")
def shipped() -> list[tuple[str, str]]:
    """(uid, sentence) of all shipped passages."""
    rows = []
    for file in sorted((paths.example_dir() / "passages").glob("*.jsonl")):
        for line in file.read_text().splitlines():
            text = training_text(json.loads(line))
            prose = [part for part in text.split("\n") if not part.startswith("#")]
            rows += [
                (file.stem, s) for part in prose for s in split_sentences(MARKUP.sub(" ", part)) if len(s.split()) > 5
            ]
    return rows


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    return {document.uid: Source(document) for document in load_task("example")}


def found(sentences: list[tuple[str, str]], sources: dict[str, Source]) -> float:
    return sum(bool(sources[uid].fault(sentence)) for uid, sentence in sentences) / len(sentences)


def test_few_sentences_of_a_careful_writer_are_reported(shipped, sources):
    assert len(shipped) > 1000
    assert found(shipped, sources) < 0.03


def test_planted_numbers_names_and_foreign_sentences_are_found(shipped, sources):
    rng, articles = random.Random(0), {document.uid: document.text for document in load_task("example")}
    numbers = [
        (uid, re.sub(r"\d+", lambda m: str(int(m[0]) + 7), s, count=1)) for uid, s in shipped if re.search(r"\d", s)
    ]
    assert found(numbers, sources) > 0.9
    names = sorted({name for text in articles.values() for name in CAPITALISED.findall(text)})
    renamed = []
    for uid, sentence in shipped:
        if places := list(CAPITALISED.finditer(sentence)):
            place, other = rng.choice(places), rng.choice([name for name in names if name not in articles[uid]])
            renamed.append((uid, sentence[: place.start()] + other + sentence[place.end() :]))
    assert found(renamed, sources) > 0.8
    foreign = [(rng.choice([other for other in articles if other != uid]), sentence) for uid, sentence in shipped]
    assert found(foreign, sources) > 0.9
