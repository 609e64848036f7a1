import json
import os
from math import comb

import numpy as np
import pytest

from utils import corpus
from utils.io import UserError
from utils.quality import Document

DOCUMENT = Document(
    "u", "A {title}", "Doe, Jo", "1950", "A text with {entities} and {document} in it."
)
ENTITIES = list("abcdefg")


def requests(max_pairs=None, max_triples=None, seed=0, entities=ENTITIES):
    return corpus.passage_requests(DOCUMENT, entities, "m", max_pairs, max_triples, seed)


def test_all_pairs_and_triples():
    kinds = [request.kind for request in requests()]
    assert kinds == ["pair"] * comb(7, 2) + ["triple"] * comb(7, 3)


def test_samples_are_seeded_and_nested():
    small, large = ({r.entities for r in requests(3, n)} for n in (5, 20))
    assert small < large
    assert [r.id for r in requests(3, 5)] == [r.id for r in requests(3, 5)]
    assert {r.entities for r in requests(3, 5, seed=1)} != small


def test_ids_depend_on_what_is_asked():
    base = requests()[0]
    assert base.id == requests()[0].id
    others = [
        requests()[1],
        corpus.Request(DOCUMENT, "pair", base.entities, "other model"),
        corpus.Request(
            Document("u", "A {title}", "Doe, Jo", "1950", "Other."), "pair", base.entities, "m"
        ),
        corpus.entity_request(DOCUMENT, "m"),
    ]
    assert len({base.id, *(other.id for other in others)}) == 5


def test_the_article_comes_before_the_entities_and_braces_stay():
    texts = [request.text() for request in requests()]
    assert all("A text with {entities} and {document} in it." in text for text in texts)
    shared = min(len(os.path.commonprefix([texts[0], text])) for text in texts[1 : comb(7, 2)])
    assert shared >= texts[0].index("- a")
    assert "A {title}\nby Jo Doe (1950)" in texts[0]


@pytest.mark.parametrize(
    ("reply", "entities"),
    [
        ('{"summary": "s", "entities": ["A", "B", "C"]}', ["A", "B", "C"]),
        (
            'Here it is:\n```json\n{"summary": "s", "entities": ["A", " a ", "B  c", "D"]}\n```',
            ["A", "B c", "D"],
        ),
        ('{"entities": ["A", 3, "", "B", "C"]}', ["A", "B", "C"]),
        (f'{{"entities": ["A", "B", "{"word " * 13}", "C"]}}', ["A", "B", "C"]),
    ],
)
def test_entities_are_found(reply, entities):
    assert corpus.parse_entities(reply)[1] == entities


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "no JSON",
        "{",
        '{"entities": []}',
        '{"entities": "A, B, C"}',
        '{"entities": ["A", "a", "B"]}',
        "[1]",
        '{"summary": "s", "ent',
    ],
)
def test_bad_replies_are_refused(reply):
    with pytest.raises(ValueError):
        corpus.parse_entities(reply)


def test_passages_are_what_ended_well_in_an_order_of_their_own(tmp_path):
    records = [
        {"id": "3", "kind": "pair", "text": "three", "finish_reason": "stop"},
        {
            "id": "1",
            "kind": "entities",
            "summary": "one",
            "entities": ["x"],
            "finish_reason": "stop",
        },
        {"id": "2", "kind": "pair", "text": "cut", "finish_reason": "length"},
        {"id": "4", "kind": "pair", "finish_reason": "error", "error": "500"},
        {"id": "5", "kind": "pair", "text": "", "finish_reason": "stop"},
    ]
    for name, order in (("a", records), ("b", records[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "u.jsonl").write_text("".join(json.dumps(r) + "\n" for r in order))
        files, places = corpus.locate_passages([tmp_path / name], "")
        assert list(corpus.read_passages(files, places)) == ["one", "three"]
        assert list(corpus.read_passages(files, np.flip(places, 0))) == ["three", "one"]


def test_an_empty_folder_names_the_step(tmp_path):
    with pytest.raises(UserError, match="run it"):
        corpus.locate_passages([tmp_path], "run it")


def test_a_corpus_without_one_good_passage_is_no_corpus(tmp_path):
    (tmp_path / "u.jsonl").write_text('{"id": "1", "text": "cut", "finish_reason": "length"}\n')
    with pytest.raises(UserError, match="no passage in it ended well"):
        corpus.locate_passages([tmp_path], "run it")
