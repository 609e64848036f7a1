import hashlib
import itertools
import os
from math import comb

import pytest

from data.generation import methods
from tasks.documents import Document

DOCUMENT = Document("u", "A {title}", "Doe, Jo", "1950", "A text with {entities} and {document} in it.")
ENTITIES = list("abcdefg")


def requests(max_pairs=None, max_triples=None, seed=0, entities=ENTITIES, **options):
    limits = {"pair": max_pairs, "triple": max_triples}
    settings = methods.GenerationSettings("m", limits=limits, seed=seed, **options)
    return [r for kind in settings.kinds for r in methods.passage_requests(DOCUMENT, kind, entities, settings)]


def test_all_pairs_and_triples():
    kinds = [request.kind for request in requests()]
    assert kinds == ["pair"] * comb(7, 2) + ["triple"] * comb(7, 3)


def test_samples_are_seeded_and_nested():
    small, large = ({r.entities for r in requests(3, n)} for n in (5, 20))
    assert small < large
    assert [r.id for r in requests(3, 5)] == [r.id for r in requests(3, 5)]
    assert {r.entities for r in requests(3, 5, seed=1)} != small


def test_ids_and_prompts_are_stable():
    """After a change of ids, existing replies would be requested and paid for again."""
    present = requests(max_triples=5, samples=2)
    digests = []
    for asked in (present, [request.earlier() for request in present]):
        text = "".join(request.id + request.prompt() for request in asked)
        digests.append(hashlib.sha256(text.encode()).hexdigest())
    assert digests == [
        "89c7e7dc8d0f111f88de890fa46a55bcbd2669ffbce9e172beb6e0807cae7926",
        "de09c6684080c4503dd87041274a61c28064cea98cfb928aafe7af2f53b10012",  # of the prompts before 2026-11-27
    ]


def test_a_reply_to_an_earlier_prompt_is_not_asked_for_again():
    request = requests()[0]
    assert not request.is_answered(set())
    assert request.is_answered({request.id})
    assert request.is_answered({request.earlier().id})
    assert not request.is_answered({requests()[1].id})
    assert request.earlier().earlier() is None
    listing = methods.list_request(DOCUMENT, methods.GenerationSettings("m"))
    assert listing.earlier() is None and listing.is_answered({listing.id})


def test_the_style_differs_between_calls_and_seeds_but_not_the_record_id():
    styles = {request.prompt().rsplit("Write it as ", 1)[1] for request in requests()}
    assert len(styles) > 30  # of 56 requests, with 200 styles
    assert [r.prompt() for r in requests()] == [r.prompt() for r in requests()]
    first = {request.id: request.prompt() for request in requests(seed=0)}
    second = {request.id: request.prompt() for request in requests(seed=1)}
    assert first.keys() == second.keys()
    assert sum(first[id] != second[id] for id in first) > 40


def test_ids_differ_between_requests():
    base = requests()[0]
    assert base.id == requests()[0].id
    others = [
        requests()[1],
        methods.PassageRequest(DOCUMENT, "pair", base.entities, "other model"),
        methods.PassageRequest(Document("u", "A {title}", "Doe, Jo", "1950", "Other."), "pair", base.entities, "m"),
        methods.list_request(DOCUMENT, methods.GenerationSettings("m")),
    ]
    assert len({base.id, *(other.id for other in others)}) == 5


def test_the_article_comes_before_the_entities_and_braces_stay():
    texts = [request.prompt() for request in requests()]
    assert all("A text with {entities} and {document} in it." in text for text in texts)
    shared = min(len(os.path.commonprefix([texts[0], text])) for text in texts[1 : comb(7, 2)])
    assert shared >= texts[0].index("\n- ")
    assert "A {title}\nby Jo Doe (1950)" in texts[0]


@pytest.mark.parametrize(
    ("reply", "entities"),
    [
        ('{"summary": "s", "entities": ["A", "B", "C"]}', ["A", "B", "C"]),
        ('Here it is:\n```json\n{"summary": "s", "entities": ["A", " a ", "B  c", "D"]}\n```', ["A", "B c", "D"]),
        ('{"entities": ["A", 3, "", "B", "C"]}', ["A", "B", "C"]),
        (f'{{"entities": ["A", "B", "{"word " * 13}", "C"]}}', ["A", "B", "C"]),
    ],
)
def test_entities_in_a_reply(reply, entities):
    assert methods.parse_list(reply)[1] == entities


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
def test_replies_without_a_list_raise(reply):
    with pytest.raises(ValueError):
        methods.parse_list(reply)


def test_nth_combination_agrees_with_itertools():
    for total, size in ((7, 2), (7, 3), (9, 1), (5, 0), (3, 3)):
        numbered = [methods.nth_combination(total, size, n) for n in range(comb(total, size))]
        assert numbered == [list(group) for group in itertools.combinations(range(total), size)]


def test_each_pair_once_and_more_samples_extend_the_sequence():
    once, twice = requests(max_triples=4), requests(max_triples=4, samples=2)
    assert len({r.entities for r in once}) == len(once) == comb(7, 2) + 4
    assert [r.id for r in twice if not r.sample] == [r.id for r in once]
    assert len({r.id for r in twice}) == len(twice) == 2 * len(once)


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_has_its_prompts_and_its_own_ids(method):
    settings = methods.GenerationSettings("m", method)
    document = Document("u", "A title", "Doe, Jo", "1950", "A text.")
    asked = [r for kind in settings.kinds for r in methods.passage_requests(document, kind, ENTITIES, settings)]
    assert len(asked) == sum(methods.passage_count(kind, 7, settings) for kind in settings.kinds)
    if settings.list_kind:
        asked.append(methods.list_request(document, settings))
        assert f'"{settings.list_kind}"' in asked[-1].prompt()
    shared = os.path.commonprefix([request.prompt() for request in asked])
    assert "A text." in shared  # one cached prefix serves all calls
    for request in asked:
        assert "{" not in request.prompt().split("# Task")[1].replace('{"', "")
    other = methods.PassageRequest(document, asked[0].kind, asked[0].entities, "m", "another method")
    assert other.id != asked[0].id


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["The Bell", "bell", "a bell."], ["The Bell"]),
        (["bell", "bells", "the Bells"], ["bell"]),
        (["ferries", "ferry"], ["ferries"]),
        (["box", "boxes"], ["box"]),
        (["Ada", "Ada Lovelace", "“Ada”"], ["Ada", "Ada Lovelace"]),
        (["the", "", "A"], ["the", "A"]),
        (["gas", "ga"], ["gas"]),
        (["James", "Jane"], ["James", "Jane"]),
        # proper names have no plural
        (["Jones", "Jon"], ["Jones", "Jon"]),
        (["William", "Williams"], ["William", "Williams"]),
        (["Time", "Times", "The Times"], ["Time", "Times"]),
        (["Mars", "Mar"], ["Mars", "Mar"]),
        (["mars", "Mar", "MARS"], ["mars", "Mar"]),
        (["An Nguyen", "Nguyen"], ["An Nguyen", "Nguyen"]),
        (["Mars rover", "Mars rovers"], ["Mars rover"]),
        # nor do these have another
        (["princess", "princes"], ["princess", "princes"]),
        (["glass", "glasses"], ["glass"]),
        # one name in two encodings of Unicode
        (["Café", "Cafe\u0301"], ["Café"]),
    ],
)
def test_distinct_names(names, expected):
    assert methods.distinct_names(names) == expected


def test_ninety_five_percent_of_forty_entities_prompts_are_shared():
    """Fraction of prompt characters in a prefix shared with an earlier call of the same kind; 5,000 tokens."""
    document = Document("u", "Title", "Doe, Jo", "1950", "word " * 4000)
    names = [f"Entity number {n}" for n in range(40)]
    for kind in ("pair", "triple"):
        settings = methods.GenerationSettings("m", limits={"triple": 1000})
        texts = [r.prompt() for r in methods.passage_requests(document, kind, names, settings)]
        shared = sum(len(os.path.commonprefix(pair)) for pair in itertools.pairwise(texts))
        assert shared / sum(map(len, texts)) >= 0.95
