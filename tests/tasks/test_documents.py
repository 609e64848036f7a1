import json

import pytest

from data.generation.methods import GenerationSettings, list_request
from tasks.documents import Document, load_documents, load_task, split_of
from tests.conftest import SHARED, error_line
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


def test_ids_of_passages_are_those_of_the_flattened_text(tmp_path):
    """Passages that were generated when the lines of a document were joined keep their ids; QuALITY's text is
    unchanged."""
    text = "# T\n\n- one  x\n- two\n\na\tb\r\nc\fd"
    (tmp_path / "q.jsonl").write_text(json.dumps({"title": "T", "article": text}) + "\n")
    (new,) = load_documents([tmp_path / "q.jsonl"], "")
    old = Document(new.uid, "T", "", "", "# T\n\n- one x - two\n\na b c d")
    assert new.text != old.text
    settings = GenerationSettings("m")
    assert list_request(new, settings).id == list_request(old, settings).id
    (tmp_path / "q.jsonl").write_text(json.dumps({"title": "T", "article": text, "set_unique_id": "1"}) + "\n")
    assert load_documents([tmp_path / "q.jsonl"], "")[0].text == old.text


@pytest.mark.parametrize(
    ("author", "byline"),
    [
        ("Harris, Larry M.", "Larry M. Harris"),
        ("de Camp, L. Sprague", "L. Sprague de Camp"),
        ("Ada Stone, Ben Reed", "Ada Stone, Ben Reed"),
        ("Grey, Jr.", "Grey, Jr."),
        ("Office of Lamps, Department North", "Office of Lamps, Department North"),
        (None, ""),
    ],
)
def test_family_names_of_files_in_qualitys_form(tmp_path, author, byline):
    (tmp_path / "q.jsonl").write_text(record("A", author, year=None) + "\n")
    (document,) = load_documents([tmp_path / "q.jsonl"], "")
    assert (document.byline, document.year) == (byline, "")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"options": ["  ", "a bell", "a lamp", "a flag"]}, "blank"),  # the case empty_option.jsonl
        ({"options": ["a", "b", "b", "d"]}, "twice"),
        ({"options": ["a", "b", 3, "d"]}, "not a text"),
        ({"options": ["a", None, "c", "d"]}, "not a text"),
        ({"options": "abcd"}, "four options"),
        ({"options": ["a", "b", "c"]}, "four options"),
        ({"question": None}, "blank"),
        ({"question": " "}, "blank"),
        ({"gold_label": 5}, "one of them correct"),
        ({"gold_label": "x"}, "one of them correct"),
        ({"gold_label": 2.5}, "one of them correct"),
    ],
)
def test_unusable_questions_are_named(home, changed, message):
    line = json.loads(record("A", "X", [1]))
    line["questions"][0] |= changed
    file = home / "data/dataset/raw/mine.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(line) + "\n")
    error = error_line("evaluation.py", "--task", "mine", "--model_path", "x")
    assert "question A1: " in error
    assert message in error


@pytest.mark.parametrize(("gold_label", "difficult"), [("2", "1"), (2.0, 1.0), (2, True)])
def test_numbers_written_as_texts_or_floats(tmp_path, gold_label, difficult):
    line = json.loads(record("A", "X", [1, 2, 3]))
    line["questions"][0] |= {"gold_label": gold_label, "difficult": difficult}
    line["questions"][1] |= {"gold_label": None}  # a question without a known answer
    line["questions"][2] |= {"difficult": "0"}
    (tmp_path / "q.jsonl").write_text(json.dumps(line) + "\n")
    first, last = load_documents([tmp_path / "q.jsonl"], "")[0].questions
    assert (first.gold, first.hard, last.hard) == (1, True, False)


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
