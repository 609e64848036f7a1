import json
from collections import Counter

import numpy as np
import pytest

from data.generation.passages import PassageStore, locate_passages, read_passages, training_text
from utils.errors import UserError


def test_passages_are_complete_texts_ordered_by_record_id(tmp_path):
    records = [
        {"id": "3", "kind": "pair", "text": "three", "finish_reason": "stop"},
        {"id": "1", "kind": "entities", "summary": "one", "entities": ["x"], "finish_reason": "stop"},
        {"id": "2", "kind": "pair", "text": "cut", "finish_reason": "length"},
        {"id": "4", "kind": "pair", "finish_reason": "error", "error": "500"},
        {"id": "5", "kind": "pair", "text": "", "finish_reason": "stop"},
    ]
    for name, order in (("a", records), ("b", records[::-1])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "u.jsonl").write_text("".join(json.dumps(r) + "\n" for r in order))
        files, locations = locate_passages([tmp_path / name], "")
        assert list(read_passages(files, locations)) == ["one", "three"]
        assert list(read_passages(files, np.flip(locations, 0))) == ["three", "one"]


def test_an_empty_folder_names_the_step(tmp_path):
    with pytest.raises(UserError, match="run it"):
        locate_passages([tmp_path], "run it")


def test_a_corpus_without_a_complete_passage_raises(tmp_path):
    (tmp_path / "u.jsonl").write_text('{"id": "1", "text": "cut", "finish_reason": "length"}\n')
    with pytest.raises(UserError, match="no complete passage"):
        locate_passages([tmp_path], "run it")


RECORDS = [
    {
        "id": "l",
        "kind": "entities",
        "entities": ["x", "y"],
        "summary": "s",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    },
    {
        "id": "1",
        "kind": "pair",
        "text": "one",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 120, "completion_tokens": 30},
    },
    {
        "id": "2",
        "kind": "pair",
        "text": "cut",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 120, "completion_tokens": 50},
    },
    {"id": "3", "kind": "pair", "finish_reason": "error", "error": "500"},
]


def journal(folder):
    path = folder / "u.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"id": "torn')
    return path


def test_failed_calls_are_dropped_and_truncated_replies_only_with_retry_failed(tmp_path):
    path = journal(tmp_path)
    store = PassageStore(tmp_path, read_only=True)
    store.open("u", "l")
    assert "torn" in path.read_text()  # read_only changes no file
    assert store.done["u"] == {"l", "1", "2"}
    store = PassageStore(tmp_path)
    store.open("u", "l")
    assert store.done["u"] == {"l", "1", "2"}
    assert store.listed_items == {"u": ["x", "y"]}
    assert store.usage["pair"] == {"prompt_tokens": 240, "completion_tokens": 80, "records": 2}
    assert store.list_prompt_tokens == {"u": 100}
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["l", "1", "2"]
    store = PassageStore(tmp_path, retry_failed=True)
    store.open("u", "l")
    assert store.done["u"] == {"l", "1"}
    store.append("u", RECORDS[2])
    assert store.finish_reasons == {"stop": 2, "length": 1}
    assert json.loads(path.read_text().splitlines()[-1]) == RECORDS[2]


SENTENCES = [f"Sentence number {n} tells of the lamp, the keeper and the reef." for n in range(12)]


def cut_record(text: str) -> dict:
    return {"id": "c", "kind": "pair", "text": text, "finish_reason": "length"}


def test_a_cut_reply_is_kept_up_to_its_last_complete_sentence(tmp_path):
    whole = " ".join(SENTENCES)
    assert training_text(cut_record(whole + " And then the kee")) == whole
    assert training_text(cut_record(whole)) == whole
    assert training_text(cut_record(whole + "\n\n## The second name\n\n- a list item")) == whole
    assert training_text(cut_record(whole + " And then the kee"), drop_cut=True) == ""
    (tmp_path / "u.jsonl").write_text(json.dumps(cut_record(whole + " And th")) + "\n")
    counts = Counter()
    files, locations = locate_passages([tmp_path], "", counts=counts)
    assert list(read_passages(files, locations)) == [whole] and counts == {"trimmed": 1}
    with pytest.raises(UserError, match="no complete passage"):
        locate_passages([tmp_path], "", drop_cut=True, counts=counts)
    assert counts == {"trimmed": 1, "cut": 1}


def test_a_cut_reply_with_fewer_than_a_hundred_words_is_left_out():
    assert training_text(cut_record(" ".join(SENTENCES[:8]) + " And then")) == ""  # 96 words
    assert training_text(cut_record(" ".join(SENTENCES[:9]) + " And then")) == " ".join(SENTENCES[:9])
    assert training_text(cut_record("word " * 300)) == ""  # no sentence ends


def test_a_cut_list_with_its_summary_is_not_trimmed():
    assert training_text({"kind": "entities", "summary": "A summary.", "finish_reason": "length"}) == ""


def test_blank_replies_are_asked_for_again(tmp_path):
    (tmp_path / "u.jsonl").write_text('{"id": "1", "kind": "pair", "finish_reason": "empty", "error": "blank"}\n')
    store = PassageStore(tmp_path)
    store.open("u", None)
    assert store.done == {"u": set()}
    assert (tmp_path / "u.jsonl").read_text() == ""
