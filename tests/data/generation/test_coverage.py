"""Coverage of documents by passages, against the known answers of the example corpus; plans of --aim_tellings."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from data.generation.aiming import (
    REQUESTS_PER_PLAN,
    SENTENCES_PER_REQUEST,
    SPARE_REQUESTS,
    Progress,
    mentions,
    plan_requests,
)
from data.generation.coverage import Statements, split_parts, stems
from data.generation.methods import FACTS, GenerationSettings
from data.generation.passages import training_text
from tasks.documents import Document, load_task
from utils import paths

TEXT = (
    "The lamp of Skarrow was lit in 1859, two winters after the barque Emmeline sank. Odile Marchbanks kept it for "
    "thirty-nine years. Her brother Tam repaired nets in the harbour; he never climbed the tower. Gulls nest under "
    "the gallery. The reef takes its name from a drowned bishop."
)
ENTITIES = ["Odile Marchbanks", "Emmeline", "Tam", "gallery"]


def test_statements_are_sentences_and_the_parts_of_long_ones():
    statements = Statements("A lamp", TEXT)
    assert len(statements.sentences) == 5
    assert len(statements.texts) == 7
    assert statements.sentence_of.tolist() == [0, 0, 1, 2, 2, 3, 4]
    assert split_parts("Yes, it was the old lighthouse keeper.") == ["Yes, it was the old lighthouse keeper."]


def test_a_paraphrase_tells_a_statement_and_another_text_does_not():
    statements = Statements("A lamp", TEXT)
    assert statements.told_by("For thirty-nine years the light was kept by Odile Marchbanks.").tolist() == [
        *(False, False, True, False, False, False, False)
    ]
    assert not statements.told_by("A keeper once lived there. It was cold.").any()
    assert not statements.told_by("").any()
    assert statements.told_by(TEXT).all()
    assert statements.tellings([TEXT, TEXT, "Nothing of it."]).tolist() == [2] * 7


def test_scripts_without_spaces_and_other_alphabets():
    chinese = Statements("灯塔", "灯塔建于一八五九年。奥迪尔守了三十九年。")
    assert chinese.told_by("奥迪尔守了三十九年的灯。").tolist() == [False, True]
    russian = Statements("Маяк", "Маяк зажгли в 1859 году. Одиль служила тридцать девять лет.")
    assert russian.told_by("Тридцать девять лет служила там Одиль.").tolist() == [False, True]


def test_documents_without_statements():
    for text in ("", "...", "Yes."):
        assert Statements("t", text).tellings(["A passage."]).sum() == 0


def test_tellings_agree_with_the_answers_in_the_shipped_passages():
    """84 facts; a telling by their answers' words: the answer stands in a passage of its article. There they are told
    9.1 times on average, and nearly equally often, so the correlation has little to go by."""
    measured, known, pairs = [], [], []
    for document in load_task("example"):
        file = paths.example_dir() / "passages" / f"{document.uid}.jsonl"
        passages = [training_text(json.loads(line)) for line in file.read_text().splitlines()]
        statements = Statements(document.title, document.text)
        told = np.array([statements.told_by(passage) for passage in passages])
        for question in document.questions:
            answer = question.options[question.gold]
            place = max(range(len(statements.texts)), key=lambda n: answer.lower() in statements.texts[n].lower())
            has_answer = [answer.lower() in passage.lower() for passage in passages]
            pairs += zip(told[:, place], has_answer, strict=True)
            measured.append(told[:, place].sum())
            known.append(sum(has_answer))
    assert np.mean(known) == pytest.approx(9.1, abs=0.1)
    assert np.mean(measured) == pytest.approx(9.1, abs=0.5)
    assert spearmanr(measured, known).statistic >= 0.6
    both = sum(bool(a and b) for a, b in pairs)
    assert both / sum(bool(a) for a, _ in pairs) >= 0.95  # precision
    assert both / sum(bool(b) for _, b in pairs) >= 0.94  # recall


def document() -> Document:
    return Document("u", "A lamp", "", "", TEXT)


def settings(**options) -> GenerationSettings:
    return GenerationSettings("m", aim_tellings=2, **options)


def plan(statements: Statements, records: list[dict], done: set[str], **options) -> list:
    progress = Progress.from_records(statements, records)
    return plan_requests(document(), statements, progress, ENTITIES, done, settings(**options))


def record(request, text: str) -> dict:
    return {"id": request.id, "kind": request.kind, "entities": list(request.entities), "text": text} | {
        "finish_reason": "stop"
    }


def answer_all(reply, limit=40, **options) -> list[dict]:
    """The records of a run in which `reply(request)` answers every planned request."""
    statements, records, done = Statements("A lamp", TEXT), [], set()
    for _ in range(limit):
        requests = plan(statements, records, done, **options)
        assert len({request.id for request in requests} | done) == len(requests) + len(done)
        if not requests:
            return records
        assert len(requests) <= REQUESTS_PER_PLAN
        assert records or any(request.kind != FACTS for request in requests)
        records += [record(request, reply(request)) for request in requests]
        done |= {request.id for request in requests}
    raise AssertionError("the plan never ends")


def test_a_good_writer_is_asked_about_pairs_first():
    def retell(request) -> str:
        wanted = [stems(entity) for entity in request.entities]
        known = Statements("A lamp", TEXT).sentences
        return " ".join(s for s in known if request.kind == FACTS or any(w <= stems(s) for w in wanted))

    records = answer_all(retell)
    kinds = [record["kind"] for record in records]
    assert "pair" in kinds and kinds[0] in ("pair", "triple")
    tellings = Statements("A lamp", TEXT).tellings([record["text"] for record in records])
    assert tellings.min() >= 2
    named = {sentence for record in records if record["kind"] == FACTS for sentence in record["entities"]}
    assert "The reef takes its name from a drowned bishop." in named  # no entity is in it
    assert not any("Odile" in sentence for sentence in named)


def test_what_a_weak_writer_leaves_out_is_asked_for_by_name():
    """It repeats one sentence when asked about entities, and tells what is named."""
    records = answer_all(lambda r: " ".join(r.entities) if r.kind == FACTS else "Odile Marchbanks kept it.")
    tellings = Statements("A lamp", TEXT).tellings([record["text"] for record in records])
    assert tellings.min() >= 2
    assert all(len(record["entities"]) <= SENTENCES_PER_REQUEST for record in records)


def test_a_writer_that_tells_nothing_is_given_up():
    records = answer_all(lambda request: "Nothing at all.")
    named = [sentence for record in records if record["kind"] == FACTS for sentence in record["entities"]]
    assert max(named.count(sentence) for sentence in set(named)) == 2 + SPARE_REQUESTS


def test_a_plan_depends_on_the_records_alone():
    statements = Statements("A lamp", TEXT)
    first = plan(statements, [], set())
    assert first == plan(Statements("A lamp", TEXT), [], set())
    records = [record(first[0], TEXT)]
    rest = plan(statements, records, {first[0].id})
    assert first[0].id not in {request.id for request in rest}
    none = plan(statements, records * 2, {first[0].id})
    assert none == []


def test_mentions():
    statements = Statements("A lamp", TEXT)
    assert mentions(statements, ["Odile Marchbanks"]).tolist() == [False, False, True, False, False, False, False]
    assert not mentions(statements, []).any()
    assert mentions(statements, ["Tam", "Emmeline"]).tolist() == [False, True, False, True, False, False, False]
