import json

import numpy as np
import pytest

from data.generation.passages import PassageStore, locate_passages, read_passages
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
