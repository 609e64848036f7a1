import json

import pytest

from tasks.documents import load_documents, load_task, split_of
from tests.conftest import SHARED
from utils.errors import UserError


def record(title, author, questions=(), **extra):
    items = [
        {
            "question": f"q{i}",
            "question_unique_id": f"{title}{i}",
            "options": ["a", "b", "c", "d"],
            "gold_label": 2,
            "difficult": 1,
        }
        for i in questions
    ]
    return json.dumps(
        {"title": title, "author": author, "year": 1950, "article": "x  y\n \nz", "questions": items} | extra
    )


def test_question_sets_merge_and_documents_sort_by_title(tmp_path):
    file = tmp_path / "q.jsonl"
    lines = [record("B", "Doe, Jo", [1, 2]), record("A", "X", [1]), record("B", "Doe, Jo", [2, 3])]
    file.write_text("\n".join(lines) + "\n")
    documents = load_documents([file], "")
    assert [document.title for document in documents] == ["A", "B"]
    assert [question.id for question in documents[1].questions] == ["B1", "B2", "B3"]
    assert documents[1].byline == "Jo Doe"
    assert documents[1].text == "x y\n\nz"
    assert documents[1].questions[0].gold == 1
    assert documents[1].questions[0].hard


def test_only_newlines_end_lines(tmp_path):
    file = tmp_path / "q.jsonl"
    odd = json.loads(record("A", "X", [1])) | {"article": "one\u2028two\u2029three"}
    file.write_text(json.dumps(odd, ensure_ascii=False) + "\n")
    assert load_documents([file], "")[0].text == "one two three"


def test_uids_are_safe_and_unique(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join([record("A/B ../c", "X"), record("A/B ../c", "Y"), record("?", "X")]))
    uids = {document.uid for document in load_documents([file], "")}
    assert len(uids) == 3
    assert all(set(uid) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for uid in uids)


def test_first_fifth_is_validation():
    assert [split_of(index, 12) for index in range(12)] == ["val"] * 2 + ["test"] * 10


def test_other_file_formats_are_reported(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="record 1: has no 'title'"):
        load_documents([file], "")


def test_missing_data_error_names_the_step(home):
    with pytest.raises(UserError, match=r"scripts/download_data\.sh"):
        load_task("quality")
    with pytest.raises(UserError, match="--task"):
        load_task("nonsense")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_real_articles():
    documents = load_documents([SHARED / "quality/QuALITY.leval.htmlstripped.dev"], "")
    assert len(documents) == 8
    assert sum(len(document.questions) for document in documents) == 104
    assert documents[0].title == "Captain Chaos"
    assert documents[0].byline == "Nelson S. Bond"
    assert all("  " not in document.text for document in documents)
