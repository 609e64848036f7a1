"""The example corpus agrees with its data card."""

import json
import re
from collections import Counter

import numpy as np

from data.generation.passages import locate_passages, read_passages
from tasks.documents import load_task
from tests.conftest import ROOT
from utils.chat_template import conversation_error

DOCUMENTS = load_task("example")
FILES, PLACES = locate_passages([ROOT / "data/example/passages"], "")
PASSAGES = list(read_passages(FILES, PLACES))
QUESTIONS = [question for document in DOCUMENTS for question in document.questions]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9'’-]+", text.lower())


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    sequence = words(text)
    return list(zip(*(sequence[k:] for k in range(n)), strict=False))


def records():
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in FILES}


def test_articles():
    assert len(DOCUMENTS) >= 12
    assert all(300 <= len(document.text.split()) <= 600 for document in DOCUMENTS)


def test_questions():
    assert len(QUESTIONS) >= 72
    assert all(len(set(question.options)) == 4 for question in QUESTIONS)
    assert Counter(question.gold for question in QUESTIONS) == dict.fromkeys(range(4), len(QUESTIONS) // 4)
    answers = Counter(question.options[question.gold] for question in QUESTIONS)
    offered = Counter(option for question in QUESTIONS for option in question.options)
    assert set(offered) == set(answers)  # every wrong option is the right one of another question
    assert set(offered.values()) == {4}  # and all are offered equally often
    assert 0.2 < np.mean([question.hard for question in QUESTIONS]) < 0.4


def test_length_does_not_reveal_the_right_option():
    spread = [max(map(len, q.options)) - min(map(len, q.options)) for q in QUESTIONS]
    assert max(spread) <= 7
    longest = np.mean([len(q.options[q.gold]) == max(map(len, q.options)) for q in QUESTIONS])
    assert longest < 0.4


def test_only_the_right_option_is_in_the_article():
    for document in DOCUMENTS:
        text = document.text.lower()
        for question in document.questions:
            for index, option in enumerate(question.options):
                assert (re.sub(r"^(an?|the) ", "", option.lower()) in text) == (index == question.gold)


def test_passages_of_every_article():
    for uid, passages in records().items():
        assert uid in {document.uid for document in DOCUMENTS}
        kinds = Counter(record["kind"] for record in passages)
        assert kinds["entities"] == 1
        assert kinds["pair"] >= 6
        assert kinds["triple"] >= 2
        entities = set(passages[0]["entities"])
        for record in passages:
            assert set(record) >= {"id", "kind", "entities", "model", "prompt", "finish_reason", "usage"}
            assert set(record["entities"]) <= entities
    ids = [record["id"] for passages in records().values() for record in passages]
    assert len(set(ids)) == len(ids) == len(PASSAGES)
    assert len(FILES) == len(DOCUMENTS)


def test_passages_do_not_repeat_themselves():
    counts = Counter(gram for passage in PASSAGES for gram in grams(passage, 4))
    assert len(counts) / counts.total() >= 0.75


def test_no_question_and_no_option_list_in_the_passages():
    passage_grams = {gram for passage in PASSAGES for gram in grams(passage, 8)}
    for question in QUESTIONS:
        assert not passage_grams & set(grams(question.text, 8))
        assert not passage_grams & set(grams(" ".join(question.options), 8))


def test_replay_text_does_not_mention_the_corpus():
    texts = [json.loads(line)["text"] for line in (ROOT / "data/example/replay.jsonl").read_text().splitlines()]
    assert len(texts) == 40
    assert not any("Orrin" in text for text in texts)
    counts = Counter(gram for text in texts for gram in grams(text, 4))
    assert len(counts) / counts.total() >= 0.95


def test_conversations():
    """Five per article, those of four articles held out; none shares 8 consecutive words with a question or its
    options."""
    question_grams = {gram for q in QUESTIONS for text in (q.text, " ".join(q.options)) for gram in grams(text, 8)}
    articles = {}
    for split, number in (("train", 40), ("test", 20)):
        path = ROOT / f"data/example/conversations/{split}.jsonl"
        conversations = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(conversations) == number
        assert not [error for c in conversations if (error := conversation_error(c["messages"]))]
        messages = [message for c in conversations for message in c["messages"]]
        assert not {gram for m in messages for gram in grams(m["content"], 8)} & question_grams
        articles[split] = Counter(conversation["article"] for conversation in conversations)
        assert set(articles[split].values()) == {5}
        replies = [m["content"] for m in messages if m["role"] == "assistant"]
        reply_grams = [gram for reply in replies for gram in grams(reply, 4)]
        assert len(set(reply_grams)) > 0.95 * len(reply_grams)
    assert not set(articles["train"]) & set(articles["test"])
    assert set(articles["train"]) | set(articles["test"]) == {document.title for document in DOCUMENTS}
