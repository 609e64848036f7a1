"""gptj/trc2.py and gptj/create_hdf5.py: no line or token is lost, and cleaning equals sed's."""

import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import create_hdf5
from gptj.hdf5 import Hdf5Rows, check_files
from gptj.rows import row_order
from gptj.trc2 import clean_file
from tests.conftest import ROOT, SHARED, error_line, start_script, succeed
from utils.errors import UserError

NEWS = ROOT / "data/example/news.txt"
SED = [
    "s/<\\/[A-Z0-9]*>//",
    "s/<[A-Z0-9]*>//",
    "s/[-0-9: ]*//",
    "s/TRC2-[-0-9]*//",
    "s/\\[.*\\]//",
    "s/(Click on the Z.*//",
]


def clean_with_sed_and_iconv(content: bytes) -> bytes:
    for pattern in SED:
        content = subprocess.run(
            ["sed", pattern], input=content, capture_output=True, check=True, env=os.environ | {"LC_ALL": "C"}
        ).stdout
    return subprocess.run(["iconv", "-c", "-f", "utf-8", "-t", "utf-8"], input=content, capture_output=True).stdout


def clean(content: bytes, folder, keep_numbers=False) -> bytes:
    (folder / "raw").write_bytes(content)
    clean_file(folder / "raw", folder / "out", keep_numbers)
    return (folder / "out").read_bytes()


HARD = [
    b"<DOC><DOCNO>TRC2-2008-01-01-0001</DOCNO></DOC>\n10 people [sic] killed] in \xc3\xa9t\xc3\xa9\n",
    b"no newline at the end <A> <B> [x] (Click on the Z symbol) more",
    b"\xff\xfe bad \xc3( \xe2\x82 x \xed\xa0\x80 \xf5\x80\x80\x80 \xf4\x90\x80\x80 \xc0\xaf end\n\n\n",
    b"[\xff\xfe] inside brackets\r\n - 12:30 - carriage \x00 zero\n",
    b"\n\n<headline> lower </X1><Y2>\n--- \n",
]


@pytest.mark.skipif(not (shutil.which("sed") and shutil.which("iconv")), reason="no sed or iconv")
def test_cleaning_equals_sed_and_iconv(tmp_path):
    assert clean(NEWS.read_bytes(), tmp_path) == clean_with_sed_and_iconv(NEWS.read_bytes())
    for content in HARD:
        assert clean(content, tmp_path) == clean_with_sed_and_iconv(content), content
    rng = np.random.default_rng(0)
    alphabet = [b"<", b">", b"/", b"DOC", b"TRC2-", b"[", b"]", b"(Click on the Z", b"1", b" ", b"-", b":", b"\n", b"a"]
    alphabet += [
        b"\xc3\xa9",
        b"\xe2\x82\xac",
        b"\xf0\x9f\x98\x80",
        b"\xff",
        b"\xc3",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\x80",
    ]
    for _ in range(60):
        content = b"".join(alphabet[i] for i in rng.integers(0, len(alphabet), 300)) + b"a\n"
        assert clean(content, tmp_path) == clean_with_sed_and_iconv(content), content


def test_keep_numbers(tmp_path):
    content = b"<P>10 people killed</P>\n<DATE>2008-01-01 00:10:05</DATE>\n"
    assert clean(content, tmp_path) == b"people killed\n\n"
    assert clean(content, tmp_path, keep_numbers=True) == b"10 people killed\n\n"


def split(folder, content: bytes, *options) -> tuple[list[bytes], list[bytes]]:
    (folder / "n.clean").write_bytes(content)
    out = succeed("gptj/trc2.py", "split", "--input_file", folder / "n.clean", "--out_dir", folder, *options)
    lists = [(folder / name).read_text().split() for name in ("train_meta.txt", "val_meta.txt")]
    assert json.loads(out.splitlines()[-1]) == {"train": len(lists[0]), "val": len(lists[1])}
    return [[(folder / name).read_bytes() for name in names] for names in lists]


def test_split_keeps_every_line(tmp_path):
    for lines, length in ((25, 10), (3, 10_000), (205, 10), (20, 10), (2, 1)):
        content = b"".join(b"line %d\n" % n for n in range(lines))
        training, validation = split(tmp_path, content, "--buffer_len", length)
        assert b"".join(training + validation) == content
        assert training
        assert validation
    assert len(list((tmp_path / "split_files").iterdir())) == 2  # those of the last split only
    (tmp_path / "n.clean").write_bytes(b"one line")
    assert "cannot be split" in error_line(
        "gptj/trc2.py", "split", "--input_file", tmp_path / "n.clean", "--out_dir", tmp_path
    )


def test_split_by_article(tmp_path):
    assert json.loads(succeed("gptj/trc2.py", "clean", NEWS, tmp_path).splitlines()[-1]) == {"files": 1}
    content = (tmp_path / "news.txt.clean").read_bytes()
    options = ("--by_article", "--buffer_len", 30, "--seed", 3)
    training, validation = split(tmp_path, content, *options)
    output = b"".join(training + validation)
    assert sorted(output.split(b"\n")) == sorted(content.split(b"\n"))
    headlines = [b"FERRY FARES UP A PENNY", b"SNOW SHUTS TARN", b"RAIL FARES TO THE FAIR"]
    for headline in headlines:  # no story is split
        (file,) = [file for file in training + validation if headline in file]
        story = file.split(headline)[1].split(b"\n\n\n")[0]
        assert len(story.strip().split(b"\n")) >= 3
    assert split(tmp_path, content, *options) == [training, validation]
    assert split(tmp_path, content, *options[:-1], 4) != [training, validation]


def create(*options) -> None:
    """Run gptj/create_hdf5.py in this process."""
    with mock.patch.object(sys, "argv", ["create_hdf5.py", *map(str, options)]):
        create_hdf5.main()


def create_error(*options) -> str:
    with pytest.raises(UserError) as caught:
        create(*options)
    return str(caught.value)


def hdf5(out, tokenizer, *options) -> dict:
    create("--output_dir", out, "--tokenizer", tokenizer, "--max_seq_length", 32, *options)
    return json.loads((out / "data_params.json").read_text())


def read_rows(out) -> np.ndarray:
    return np.concatenate([h5py.File(path)["data"][:] for path in sorted(out.glob("*.h5"))])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    stories = NEWS.read_text().split("</DOC>")[:12]
    for number, story in enumerate(stories):
        (folder / f"{number:02}.txt").write_text(story)
    return folder


def token_stream(texts, tiny_model, part=slice(None)) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer, ids = AutoTokenizer.from_pretrained(tiny_model), []
    for path in sorted(texts.glob("*.txt"))[part]:
        ids += [*tokenizer(path.read_text(), add_special_tokens=False)["input_ids"], 1]
    return ids


def test_unpadded_rows_are_the_token_stream(texts, tiny_model, tmp_path):
    manifest = hdf5(tmp_path, tiny_model, "--input_dir", texts, "--files_per_record", 7)
    (rows,) = [np.concatenate([h5py.File(tmp_path / file["name"])["data"][:] for file in manifest["files"]])]
    ids, mask, labels = rows[:, 0], rows[:, 1] > 0, rows[:, 2]
    assert [*ids[mask].tolist(), labels[mask][-1]] == token_stream(texts, tiny_model)
    assert mask.sum() == manifest["counts"]["labels"] == manifest["counts"]["tokens"] - 1
    with h5py.File(tmp_path / "examples_0_0.h5") as file:
        assert file["data"].chunks == (1, 3, 32)
        assert file["data"].dtype == np.int32
        assert file["data"].compression == "gzip"
        assert file.attrs["n_examples"] == 7


def test_short_windows_and_single_documents_keep_every_token(texts, tiny_model, tmp_path):
    hdf5(tmp_path / "a", tiny_model, "--input_dir", texts, "--short_seq_prob", 0.5)
    rows = read_rows(tmp_path / "a")
    mask = rows[:, 1] > 0
    assert [*rows[:, 0][mask].tolist(), rows[:, 2][mask][-1]] == token_stream(texts, tiny_model)
    assert len({int(n) for n in mask.sum(1)}) > 3
    manifest = hdf5(tmp_path / "b", tiny_model, "--input_dir", texts, "--no-pack_sequences")
    counts = manifest["counts"]
    assert counts["labels"] == counts["tokens"] - counts["documents"]
    assert (read_rows(tmp_path / "b")[:, 2] == 1).sum() == counts["documents"]


def test_processes_share_the_documents(texts, tiny_model, tmp_path, capsys):
    manifest = hdf5(tmp_path, tiny_model, "--input_dir", texts, "--processes", 2)
    rows = [h5py.File(tmp_path / f"examples_0_{p}.h5")["data"][:] for p in (0, 1)]
    for process, part in enumerate(rows):
        mask = part[:, 1] > 0
        ids = [*part[:, 0][mask].tolist(), part[:, 2][mask][-1]]
        assert ids == token_stream(texts, tiny_model, slice(process, None, 2))
    assert manifest["counts"]["documents"] == 12
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == manifest["counts"] | {"files": 2}


def test_killed_and_resumed_run_has_the_same_rows(texts, tiny_model, tmp_path):
    options = ("--input_dir", texts, "--files_per_record", 2)
    hdf5(tmp_path / "whole", tiny_model, *options)
    settings = ("--output_dir", tmp_path / "cut", "--tokenizer", tiny_model, "--max_seq_length", 32)
    command = ("gptj/create_hdf5.py", *settings, *options)
    process = start_script(*command)
    while len(list((tmp_path / "cut").glob("examples_*.h5"))) < 3 and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    (tmp_path / "cut/data_params.json").unlink(missing_ok=True)
    assert "--overwrite" in error_line(*command)
    options = command[1:]
    if (tmp_path / "cut/.settings.json").exists():
        assert "other settings" in create_error(*options, "--resume_from_checkpoint", "--pad_id", 3)
    create(*options, "--resume_from_checkpoint")
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.h5"))
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.h5")) == names
    assert np.array_equal(read_rows(tmp_path / "cut"), read_rows(tmp_path / "whole"))


def test_code_points_beyond_unicode_are_left_out_and_counted(tiny_model, tmp_path, capsys):
    """D10: cleaning keeps them, as iconv does, and create_hdf5.py refused the cleaned file."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_bytes(b"one \xf5\x80\x80\x80two\r\n\xf4\x90\x80\x80three \xf4\x8f\xbf\xbf")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/a.txt").write_text("one two\nthree \U0010ffff")
    for name in ("texts", "plain"):
        hdf5(tmp_path / f"{name}-h5", tiny_model, "--input_dir", tmp_path / name)
    assert "texts/a.txt: 2 code points beyond U+10FFFF are left out" in capsys.readouterr().err
    assert (read_rows(tmp_path / "texts-h5") == read_rows(tmp_path / "plain-h5")).all()
    (tmp_path / "texts/a.txt").write_bytes(b"\xed\xa0\x80")
    assert "not UTF-8" in create_error(
        "--output_dir", tmp_path / "o", "--input_dir", tmp_path / "texts", "--tokenizer", tiny_model
    )


def test_csv_and_csv_errors(tiny_model, tmp_path):
    table = tmp_path / "news.csv"
    table.write_text('date,text\n1,"a story, with a comma"\n2,"another\nof two lines"\n')
    assert hdf5(tmp_path / "out", tiny_model, "--csv", table)["counts"]["documents"] == 2

    def error_for(content, *options):
        table.write_bytes(content)
        return create_error("--csv", table, "--output_dir", tmp_path / "no", "--tokenizer", tiny_model, *options)

    assert "row 2 has 3 columns" in error_for(b"date,text\n1,a\n2,b,c\n")
    assert "row 2" in error_for(b'date,text\n1,a\n2,"never closed\n3,b\n')
    assert "--text_column body" in error_for(b"date,text\n1,a\n", "--text_column", "body")
    assert "not UTF-8" in error_for(b"date,text\n1,\xff\xfe\n")


def test_rows_without_text_are_left_out_and_counted(tiny_model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    values = ["a story", None, ["a", "list"], " ", "another story"]
    (tmp_path / "in/a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    assert hdf5(tmp_path / "a", tiny_model, "--input_dir", tmp_path / "in")["counts"]["documents"] == 2
    assert "a.jsonl: 3 of the 5 rows that were read have no text and were left out" in capsys.readouterr().err
    (tmp_path / "b.csv").write_text('date,text\n1,a story\n2,\n3," "\n4,b\n')
    assert hdf5(tmp_path / "b", tiny_model, "--csv", tmp_path / "b.csv")["counts"]["documents"] == 2
    assert "b.csv: 2 of the 4 rows" in capsys.readouterr().err
    (tmp_path / "in/a.jsonl").write_text('{"text": ["a", "b"]}\n{"text": null}\n')
    options = ("--input_dir", tmp_path / "in", "--output_dir", tmp_path / "c", "--tokenizer", tiny_model)
    assert "a.jsonl: none of its 2 rows has a text" in create_error(*options)


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 40), bs=st.integers(1, 8), steps=st.integers(1, 12), drop=st.booleans())
def test_row_order(rows, bs, steps, drop):
    for seed in (None, 5):
        order = row_order(rows, bs, steps, drop, seed)
        kept = rows // bs * bs if drop else rows
        assert len(order) == (steps * bs if kept else 0)
        for begin in range(0, len(order) - kept + 1, kept or 1):  # no row repeats within an epoch
            assert len(set(order[begin : begin + kept])) == kept
        # A shorter run is a prefix of a longer one.
        assert np.array_equal(row_order(rows, bs, steps + 3, drop, seed)[: len(order)], order)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 2)])
def test_ranks_and_workers_read_the_same_rows(texts, tiny_model, tmp_path, ranks, workers):
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    hdf5(tmp_path, tiny_model, "--input_dir", texts, "--files_per_record", 7)
    files = sorted(tmp_path.glob("*.h5"))
    counts, length = check_files(files, 600, 64)
    rows = Hdf5Rows(files, counts, row_order(sum(counts), 4, 8, True, 1))
    seen = []
    for rank in range(ranks):
        loader = prepare_data_loader(
            DataLoader(rows, 4 // ranks, num_workers=workers),
            num_processes=ranks,
            process_index=rank,
            put_on_device=False,
        )
        seen += [row.tolist() for batch in loader for row in batch["input_ids"]]
    assert length == 32
    assert sorted(seen) == sorted(rows.row(i)[0].tolist() for i in range(len(rows)))


def write_hdf5(path, data, examples=True) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=data, chunks=(1, *data.shape[1:]), compression="gzip")
        if examples:
            file.attrs["n_examples"] = len(data)


def test_damaged_files_are_reported(tmp_path):
    good, bad = tmp_path / "a.h5", tmp_path / "b.h5"
    rows = np.ones((5, 3, 8), np.int32)
    write_hdf5(good, rows)

    def error_for(vocabulary=10, longest=8):
        with pytest.raises(UserError) as caught:
            check_files([good, bad], vocabulary, longest)
        return str(caught.value)

    write_hdf5(bad, np.ones((5, 3, 9), np.int32))
    assert "b.h5: rows of 9 tokens, but a.h5 has rows of 8" in error_for(longest=100)
    write_hdf5(bad, rows, examples=False)
    assert "b.h5: has no attribute n_examples" in error_for()
    write_hdf5(bad, rows * 10)
    assert "token id 10" in error_for()
    write_hdf5(bad, rows.astype(np.int64))
    assert "int64" in error_for()
    bad.write_bytes(good.read_bytes()[:-300])
    assert "b.h5: damaged" in error_for()
    bad.write_bytes(b"")
    assert "b.h5: damaged" in error_for()
    write_hdf5(bad, rows)
    assert "max_position_embeddings is 4" in error_for(longest=4)
    with h5py.File(bad, "a") as file:
        file.attrs["n_examples"] = 4
    assert "n_examples says 4" in error_for()


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_real_news(tiny_model, tmp_path):
    manifest = hdf5(tmp_path, tiny_model, "--csv", SHARED / "news/news.csv", "--text_column", "story_text")
    assert manifest["counts"]["documents"] == 3800
