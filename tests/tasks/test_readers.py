import json
from pathlib import Path

import pytest

from tasks import readers
from tasks.documents import article_text, load_task
from tests.conftest import error_line, run_script, succeed
from utils import paths
from utils.errors import UserError

PAGE = """<html><head><title>The  Weir</title><script>var x = "hidden";</script></head>
<body><nav>Home</nav><main><h1>The Weir</h1><p>It held &amp; held.</p><ul><li><p>One</p></li><li>Two <b>bold</b><ul><li>Three</li></ul></li></ul>
</main><footer>imprint</footer></body></html>"""


def write_pdf(path: Path, *pages: list[tuple[int, int, str]]) -> None:
    """Write a PDF with lines at the given (x, y); no installed library writes PDF. In a text § is the ligature fi."""
    font = (
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding << /Type /Encoding /Differences [167 /fi] >> >>"
    )
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        font,
    ]
    for number, lines in enumerate(pages):
        shown = "".join(f"1 0 0 1 {x} {y} Tm ({text}) Tj " for x, y, text in lines)
        stream = f"BT /F1 11 Tf {shown}ET".encode("latin-1")
        head = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 842] /Contents %d 0 R" % (5 + 2 * number)
        objects.append(head + b" /Resources << /Font << /F1 3 0 R >> >> >>")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start, size = len(data), len(objects) + 1
    data += b"xref\n0 %d\n0000000000 65535 f \n" % size + b"".join(b"%010d 00000 n \n" % o for o in offsets)
    path.write_bytes(data + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, start))


def column(x: int, y: int, *texts: str) -> list[tuple[int, int, str]]:
    """Lines one below the other."""
    return [(x, y - 14 * number, text) for number, text in enumerate(texts)]


@pytest.fixture
def handbook(tmp_path) -> Path:
    folder = tmp_path / "handbook"
    (folder / "deep").mkdir(parents=True)
    (folder / "on_lamps.txt").write_text("Trim the wick daily.")
    (folder / "rules.md").write_text("intro\n\n# The Rules\n\nNo shouting.\n")
    (folder / "page.HTML").write_text(PAGE)
    write_pdf(folder / "deep" / "tides.pdf", [(72, 720, "High water at nine.")])
    (folder / "more.jsonl").write_text(
        '{"title": "A", "text": "a."}\n{"title": "B", "article": "b.", "author": "Doe, Jo"}\n'
    )
    (folder / "notes.xyz").write_text("not a document")
    return folder


def test_every_file_type(home, handbook):
    assert readers.import_corpus(handbook) == "handbook"
    documents = {d.title: d for d in load_task("handbook")}
    assert set(documents) == {"on lamps", "The Rules", "The Weir", "tides", "A", "B"}
    assert documents["on lamps"].text == "Trim the wick daily."
    weir = documents["The Weir"].text.split()
    expected = "The Weir It held & held. One Two bold Three"
    assert [word for word in weir if word not in "Home -"] == expected.split()
    assert documents["tides"].text == "High water at nine."
    assert documents["B"].byline == "Jo Doe"
    before = paths.corpus_file("handbook").read_bytes()
    readers.import_corpus(handbook)
    assert paths.corpus_file("handbook").read_bytes() == before


@pytest.mark.parametrize(
    "page",
    [
        b"<html><body><div>The main story of the weir.</div><p>Imprint.</p></body></html>",
        b"<html><body><article><p>The main story</p></article><article><p>of the weir. Imprint.</p></article></body></html>",
        b"<html><head><meta charset='iso-8859-1'></head><body><form>The main story of the weir. Imprint. \xe9t\xe9</form></body></html>",
    ],
)
def test_html_pages_keep_all_text(tmp_path, page):
    (tmp_path / "a_page.html").write_bytes(page)
    title, text = readers.read_html(tmp_path / "a_page.html")
    assert " ".join(text.replace("été", "").split()) == "The main story of the weir. Imprint."
    assert "\ufffd" not in text
    assert title == "a page"


def test_imported_corpus_in_step_1_and_retrieval(home, handbook):
    assert "entities" in succeed("data/entigraph.py", "all", "--corpus", handbook, "--dry_run")
    question = {"question_unique_id": "1", "question": "Who is the gull?", "options": ["Ada", "Bo", "Cy", "Di"]}
    question |= {"gold_label": 1, "difficult": 0}
    record = {"title": "Quiz", "text": "The gull is called Ada.", "questions": [question]}
    (handbook / "quiz.jsonl").write_text(json.dumps(record) + "\n")
    out = succeed("evaluation.py", "--corpus", handbook, "--rag", "--retrieval_only", "--retriever", "bm25")
    assert json.loads(out.splitlines()[-1])["bm25"]["recall@1"] == 1


def test_user_errors(home, handbook, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/a.jsonl").write_text('{"title": "A", "text": "a", "author": 3}\n')
    assert "the author is not a string" in error_line("data/entigraph.py", "0", "--corpus", tmp_path / "odd")
    (tmp_path / "odd/a.jsonl").write_text('{"title": "A", "text": "a\\ud800", "author": null}\n')
    assert readers.import_corpus(tmp_path / "odd") == "odd"
    assert "make_questions.py" in error_line("evaluation.py", "--task", "odd", "--rag", "--retrieval_only")
    assert "no such folder" in error_line("data/entigraph.py", "0", "--corpus", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no documents"):
        readers.import_corpus(tmp_path / "empty")
    (handbook / "bad.pdf").write_bytes(b"%PDF-1.4 nonsense")
    with pytest.raises(UserError, match=r"bad\.pdf"):
        readers.import_corpus(handbook)
    (handbook / "bad.pdf").unlink()
    (handbook / "blank.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"blank\.txt: no text"):
        readers.import_corpus(handbook)
    (handbook / "blank.txt").write_text("x")
    (handbook / "rules2.md").write_text("# The Rules\nothers")
    with pytest.raises(UserError, match="same title"):
        readers.import_corpus(handbook)
    (handbook / "rules2.md").unlink()
    paths.corpus_file("handbook").parent.mkdir(parents=True, exist_ok=True)
    paths.corpus_file("handbook").write_text('{"title": "mine", "article": "x"}\n')
    with pytest.raises(UserError, match="not made from this folder"):
        readers.import_corpus(handbook)


def only_document(home, folder: Path):
    (document,) = load_task(readers.import_corpus(folder))
    return document


GUIDE = """# Winding the lamp

Steps, in this order:

- open the case
- turn the key *twice*
  - never three times
- close the case

| hour | oil |
|------|-----|
| six  | 2   |
| nine | 3   |

```python
# not a title
def wind(turns):
    if turns > 2:

        raise ValueError("too many")
```

A verse they sing:
The lamp is lit,
the fog is near,
we wait for it."""


def test_markdown_keeps_its_lines_in_the_training_text(home, tmp_path, tiny_model):
    """The case guide.md, in the token file of step 2."""
    from transformers import AutoTokenizer

    from utils.token_file import TokenFile

    folder = tmp_path / "lamps"
    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE + "\n")
    assert only_document(home, folder).text == GUIDE
    succeed("data/tokenize_entigraph.py", "--task", "lamps", "--raw", "--tokenizer", tiny_model)
    (ids,) = TokenFile(paths.articles_bin("lamps"), "").documents()
    text = AutoTokenizer.from_pretrained(tiny_model).decode(ids, skip_special_tokens=True)
    assert text == f"Winding the lamp\n\n{GUIDE}"


@pytest.mark.parametrize(
    ("text", "title", "byline", "year"),
    [
        (
            "---\ntitle: The Lamp\nauthor: [Ada Stone, Ben Reed]\ndate: 2021-03-01\n---\nBody.",
            "The Lamp",
            "Ada Stone, Ben Reed",
            "2021",
        ),
        (
            "---\r\nauthor: Samuel Grey, Jr.\r\nyear: 1999\r\n---\r\n# The Lamp #\r\nBody.",
            "The Lamp",
            "Samuel Grey, Jr.",
            "1999",
        ),
        ("```\n# a comment\n```\n\n## Part\n\n# The Lamp\n\nBody.", "The Lamp", "", ""),
        ("---\n\nA line above, and: no: front matter.\n\n---\n\n# The Lamp\nBody.", "The Lamp", "", ""),
        ("Body.", "a note", "", ""),
    ],
)
def test_titles_and_front_matter_of_markdown(home, tmp_path, text, title, byline, year):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a_note.md").write_text(text, newline="")
    document = only_document(home, tmp_path / "notes")
    assert (document.title, document.byline, document.year) == (title, byline, year)
    assert document.text.endswith("Body.")
    assert "author" not in document.text


def test_authors_and_years_as_written(home, tmp_path):
    """The case authors.jsonl, and QuALITY's own form beside it."""
    records = [
        {"title": "A survey of lamps", "author": "Ada Stone, Ben Reed", "year": "2021", "text": "Forty."},
        {"title": "Letter from the north", "author": "Samuel Grey, Jr.", "year": 1999.0, "text": "The road."},
        {"title": "Harbour rules", "author": "Harbour Office, Vell", "text": "No boat."},
        {"title": "Brothers", "author": "Stone, Reed", "year": None, "text": "Two."},
        {"title": "Nobody", "author": None, "year": float("nan"), "text": "None."},
    ]
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    documents = {d.title: d for d in load_task(readers.import_corpus(tmp_path / "odd"))}
    for record in records:
        assert documents[record["title"]].byline == (record["author"] or "")
    assert [documents[record["title"]].year for record in records] == ["2021", "1999", "", "", ""]
    head = article_text(documents["Letter from the north"]).splitlines()[:2]
    assert head == ["Letter from the north", "by Samuel Grey, Jr. (1999)"]


def test_records_without_text_are_left_out_and_counted(home, tmp_path, capsys):
    (tmp_path / "gaps").mkdir()
    lines = [
        {"title": "A", "text": None},
        {"title": "B", "text": ["x"]},
        {"title": "C", "text": " "},
        {"title": "D", "text": "d"},
    ]
    (tmp_path / "gaps/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert only_document(home, tmp_path / "gaps").title == "D"
    assert "a.jsonl: 3 of 4 records have no text and were left out" in capsys.readouterr().err
    (tmp_path / "gaps/a.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert "1 of 1 records have no text" in error_line("data/entigraph.py", "0", "--corpus", tmp_path / "gaps")


HEAD = (50, 780, "The Handbook of Vell")


def test_pdf_without_hyphens_ligatures_heads_and_numbers(tmp_path):
    """The case handbook.pdf: its lines are at one distance, heads and numbers included."""
    first = ("The harbour master may refuse a boat that has no regis-", "tration, and the lighthouse-")
    first += ("keeper tells him of it. The §ne is two coins.",)
    second = ("Every boat pays at the of§ce in the §rst week.", "2")
    write_pdf(tmp_path / "a_book.pdf", [HEAD, *column(50, 766, *first)], [HEAD, *column(50, 766, *second)])
    title, text = readers.read_pdf(tmp_path / "a_book.pdf")
    assert title == "a book"
    assert text == (
        "The harbour master may refuse a boat that has no registration, and the lighthouse-keeper tells him of it. "
        "The fine is two coins.\n\nEvery boat pays at the office in the first week."
    )


def test_pdf_with_two_columns_and_numbered_heads(tmp_path):
    """Columns are read one after the other, a paragraph goes on in the next column and on the next page, and the
    heads of left and right pages, which contain the page number, are dropped."""
    pages, texts = [], []
    for number, w in enumerate(("old", "new", "red", "big", "low", "far"), 7):
        left = (
            f"The {w} well-known lamp of Vell stands",
            f"on the {w} side, where a well-",
            f"known {w} reef is, and all who come by",
        )
        right = (
            f"sea {w} look for it when the fog stands",
            f"before the {w} harbour in November. It",
            f"is {w} lit at six, and put out after the",
        )
        head = f"Lamps of the Coast   {number}" if number % 2 else f"{number}   The Keepers"
        pages.append([(50, 790, head), *column(50, 700, *left), *column(320, 700, *right), (300, 30, f"- {number} -")])
        texts.append(" ".join([*left, *right]).replace("well- known", "well-known"))
    write_pdf(tmp_path / "a.pdf", *pages)
    assert readers.read_pdf(tmp_path / "a.pdf")[1] == "\n\n".join(texts)


def test_pdf_keeps_lists_and_verse(tmp_path):
    long = "A line of the text is as long as this one is, and the next one"
    lines = column(50, 700, "- open the case", "- turn the key", "- close it") + column(
        50, 620, "The lamp is lit,", "the fog is near,", "we wait for it."
    )
    write_pdf(tmp_path / "a.pdf", [*lines, *column(50, 540, long, "is short."), (50, 480, "i"), (50, 440, "12 lamps")])
    _, text = readers.read_pdf(tmp_path / "a.pdf")
    verse = "The lamp is lit,\nthe fog is near,\nwe wait for it."
    assert text == f"- open the case\n- turn the key\n- close it\n\n{verse}\n\n{long} is short.\n\n12 lamps"


def test_what_cannot_be_read_is_left_out_in_one_line_each(home, tmp_path):
    """An empty file, a scanned PDF, a broken PDF, a file of 40 MiB, Latin-1, two files of one title, the same file
    twice, loops of links, bad records, a file that may not be read."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.txt").write_text("A first document.")
    (folder / "copy").mkdir()
    (folder / "copy/a.txt").write_text("A first document.")
    (folder / "other").mkdir()
    (folder / "other/a.txt").write_text("Another document of this name.")
    (folder / "empty.txt").write_text("")
    (folder / "zeros.txt").write_bytes(b"\0\1\2\3" * 100)
    (folder / "latin.txt").write_bytes(
        "Der Leuchtturmwärter zählte täglich die Möwen über der Brücke.".encode("latin-1")
    )
    (folder / "long.txt").write_text("word " * (8 << 20))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nonsense")
    write_pdf(folder / "scanned.pdf", [])
    (folder / "loop").symlink_to(folder)
    (folder / "dead.txt").symlink_to(folder / "dead.txt")
    lines = [
        '{"title": "R1", "text": "one"}',
        '{"title": "R2", "te',
        '{"title": 3, "text": "x"}',
        '{"title": "R4", "text": "four"}',
    ]
    (folder / "records.jsonl").write_text("\n".join(lines))
    done = run_script("data/read_documents.py", folder)
    assert done.returncode == 0, done.stderr
    documents = {document.title: document.text for document in load_task("mixed")}
    assert documents.keys() == {"a", "a (other/a.txt)", "latin", "R1", "R4"}
    assert "Leuchtturmwärter zählte täglich die Möwen" in documents["latin"]
    said = done.stderr.splitlines()
    for name in ("empty.txt", "zeros.txt", "latin.txt", "long.txt", "broken.pdf", "scanned.pdf", "loop", "dead.txt"):
        assert sum(f"{folder / name}:" in line for line in said) == 1, name
    assert sum("copy/a.txt" in line for line in said) == 1
    assert sum("other/a.txt" in line for line in said) == 1
    assert "2 records were left out, the first: " in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["documents"] == 5
    assert "error: " in error_line("data/read_documents.py", folder, "--strict")


def test_thousands_of_files(home, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(5000):
        (folder / f"note {number}.txt").write_text(f"The note {number}.")
    out = succeed("data/read_documents.py", folder)
    assert "and 4,980 shorter ones" in out
    assert json.loads(out.splitlines()[-1])["documents"] == 5000


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "The café kept its façade."),
        ("cp1252", "Le phare était fermé — “jamais”, dit-il, à Noël."),
        ("cp1250", "Žluťoučký kůň úpěl ďábelské ódy nad řekou"),
        ("cp1251", "Маяк зажгли в тысяча восемьсот пятьдесят девятом году, и служила там Одиль."),
        ("gb18030", "灯塔建于一八五九年，奥迪尔守了三十九年。"),
        ("shift_jis", "灯台は千八百五十九年に点灯された。オディールが守った。"),
        ("utf-16", "plain text"),
    ],
)
def test_encodings_other_than_utf_8(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert readers.read_plain(tmp_path / "a.txt", strict=False)[1] == text
    with pytest.raises(UserError, match="not UTF-8"):
        readers.read_plain(tmp_path / "a.txt")
