import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data import tokenize_redpj
from tests.conftest import PEAK, ROOT, error_line, run_script, succeed
from utils import paths
from utils import tokenizer as tokenizer_module
from utils.errors import UserError
from utils.token_file import TokenFile
from utils.tokenizer import _encode_fast, load_tokenizer, vocabulary_sha256, write_documents

TEXTS = ["One two three.", "", "Ünïcode — naïve 日本 🙂", "a" * 300, "line\nline\n\n  spaces  "]


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model))


@pytest.fixture
def expected(tokenizer):
    return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]


def read_ids(path):
    return [list(document) for document in TokenFile(path, "").documents()]


def test_fast_and_slow_encoders_give_the_tokenizers_ids(tmp_path, tokenizer, expected, monkeypatch):
    sidecar = write_documents(tmp_path / "a.bin", lambda: iter(TEXTS), tokenizer, {})
    assert sidecar["encoder"] == "gigatoken"
    assert read_ids(tmp_path / "a.bin") == expected
    monkeypatch.setattr(tokenizer_module, "_gigatoken", lambda tokenizer: None)
    sidecar = write_documents(tmp_path / "b.bin", lambda: iter(TEXTS), tokenizer, {})
    assert sidecar["encoder"] == "transformers"
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_bos_token_is_kept(tmp_path, tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    sidecar = write_documents(tmp_path / "a.bin", lambda: iter(TEXTS), tokenizer, {})
    assert sidecar["bos"]
    for document, text in zip(read_ids(tmp_path / "a.bin"), TEXTS, strict=True):
        assert document == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert document[0] == 0


def test_wrong_fast_ids_are_detected_and_all_is_encoded_again(tmp_path, tokenizer, expected, monkeypatch, capsys):
    """gigatoken gives wrong ids in a late batch: the earlier output is discarded."""
    real = _encode_fast
    batches = []

    def wrong(batch, tokenizer, fast):
        batches.append(batch)
        documents = real(batch, tokenizer, fast)
        return [document + (len(batches) == 3) for document in documents]

    monkeypatch.setattr(tokenizer_module, "_encode_fast", wrong)
    monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 1)
    sidecar = write_documents(tmp_path / "a.bin", lambda: iter(TEXTS), tokenizer, {})
    assert sidecar["encoder"] == "transformers"
    assert read_ids(tmp_path / "a.bin") == expected
    assert "encoding with transformers" in capsys.readouterr().out


def test_token_limit_keeps_complete_documents(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 40)
    lengths = np.cumsum([len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS])
    for limit in (1, int(lengths[1]), int(lengths[1]) + 1, int(lengths[-1]) + 5):
        sidecar = write_documents(tmp_path / "a.bin", lambda: iter(TEXTS), tokenizer, {}, limit)
        count = min(int(np.searchsorted(lengths, limit)) + 1, len(TEXTS))
        assert (sidecar["documents"], sidecar["tokens"]) == (count, lengths[count - 1])


def test_missing_tokenizers(tmp_path, home):
    with pytest.raises(UserError, match="--tokenizer no/such"):
        load_tokenizer("no/such")
    (home / "ckpts/empty").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer("ckpts/empty")


def test_sha256_differs_between_vocabularies(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(str(tmp_path / "again"))
    assert vocabulary_sha256(again) == vocabulary_sha256(tokenizer)
    again.add_tokens(["new"])
    assert vocabulary_sha256(again) != vocabulary_sha256(tokenizer)


def test_step_2_same_seed_same_bytes(home, tiny_model):
    options = ("--task", "example", "--tokenizer", tiny_model, "--input", ROOT / "data/example/passages")
    command = ("data/tokenize_entigraph.py", *options)
    path = paths.passages_bin("example", paths.DEFAULT_GENERATOR)
    succeed(*command)
    first = path.read_bytes()
    succeed(*command)
    assert path.read_bytes() == first
    succeed(*command, "--seed", 1)
    assert path.read_bytes() != first
    file = TokenFile(path, "")
    assert len(file.ends) == 144
    assert file.meta["seed"] == 1
    assert sorted(path.read_bytes()) == sorted(first)


def test_step_2_error_names_step_1(home, tiny_model):
    assert "data/entigraph.py all" in error_line("data/tokenize_entigraph.py", "--tokenizer", tiny_model)


def test_step_3_reads_every_file_type(home, tiny_model, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.txt").write_text("".join(f"line {number} of the text file\n" for number in range(5000)))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"record {n}\u2028x"}) + "\n" for n in range(50)))
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {n}" for n in range(50)]}), tmp_path / "c.parquet")
    files = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.parquet")]
    options = ("--tokenizer", tiny_model, "--name", "mine", "--test_tokens", 1000)
    command = ("data/tokenize_redpj.py", "--text", *files, *options)
    succeed(*command)
    train, test = (TokenFile(paths.replay_bin("mine", split), "") for split in ("train", "test"))
    assert len(train.ends) + len(test.ends) == 103  # 3 pieces of the text file
    assert len(test.ids) >= 1000
    tokenizer = load_tokenizer(str(tiny_model))
    text = "".join(
        tokenizer.decode(document, skip_special_tokens=True) for file in (train, test) for document in file.documents()
    )
    assert all(f"line {number} of" in text for number in (0, 2500, 4999))
    assert "record 49" in text
    assert "row 0" in text
    before = train.path.read_bytes(), test.path.read_bytes()
    assert "--test_tokens" in error_line(*command[:-1], 10**6)
    assert (train.path.read_bytes(), test.path.read_bytes()) == before
    command = ("data/tokenize_redpj.py", "--tokenizer", tiny_model, "--text")
    assert "no such file" in error_line(*command, tmp_path / "none.txt")
    assert "must end in .txt" in error_line(*command, ROOT / "LICENSE")


def test_rows_without_text_are_left_out_and_counted(home, tiny_model, tmp_path, capfd):
    """The cases null_row.parquet and list_row.parquet, and their like in JSONL."""
    import pyarrow
    import pyarrow.parquet

    def write(name, rows):
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / name)
        return tmp_path / name

    rows = [f"Row {number} of the lamp. " * 20 for number in range(40)]
    rows[7], rows[20] = None, ""
    options = ("--tokenizer", tiny_model, "--name", "mine", "--test_tokens", 500, "--text")
    done = run_script("data/tokenize_redpj.py", *options, write("null_row.parquet", rows))
    assert (
        json.loads(done.stdout.splitlines()[-1])["documents"]
        + len(TokenFile(paths.replay_bin("mine", "test"), "").ends)
        == 38
    )
    (line,) = [line for line in done.stderr.splitlines() if "left out" in line]
    assert line.endswith("null_row.parquet: 2 of the 40 rows that were read have no text and were left out")
    records = [{"text": row} for row in rows] + [{"text": ["a"]}, {"title": "x"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    done = run_script("data/tokenize_redpj.py", *options, tmp_path / "a.jsonl")
    assert "a.jsonl: 4 of the 42 rows" in done.stderr
    lists = write("list_row.parquet", [["a", "b"], ["c"]])
    assert "list_row.parquet: none of its 2 rows has a text" in error_line("data/tokenize_redpj.py", *options, lists)


def test_step_3_error_without_the_hub(home, tiny_model):
    line = error_line("data/tokenize_redpj.py", "--tokenizer", tiny_model, HF_HUB_OFFLINE="1")
    assert "RedPajama-Data-1T-Sample" in line
    assert "--text FILE" in line


def test_fineweb_replaces_redpajama(monkeypatch, capsys):
    """No network: datasets.load_dataset is replaced by a stand-in that responds as the Hub does."""
    import datasets

    calls = []

    def load_dataset(path, config, split, streaming):
        calls.append((path, config))
        if "RedPajama" in path:
            raise RuntimeError("Dataset scripts are no longer supported")
        return datasets.Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    build, source = tokenize_redpj.hub_dataset(None, {})
    assert list(build()) == ["a", "b"]
    assert source == ["HuggingFaceFW/fineweb-edu:sample-10BT"]
    assert calls == [("togethercomputer/RedPajama-Data-1T-Sample", None), ("HuggingFaceFW/fineweb-edu", "sample-10BT")]
    assert "using HuggingFaceFW/fineweb-edu:sample-10BT instead" in capsys.readouterr().err


def test_shuffling_a_stream(monkeypatch):
    monkeypatch.setattr(tokenize_redpj, "SHUFFLE_BUFFER", 10)
    order = list(tokenize_redpj.shuffled(map(str, range(100)), 0))
    assert order == list(tokenize_redpj.shuffled(map(str, range(100)), 0))
    assert order != list(tokenize_redpj.shuffled(map(str, range(100)), 1))
    assert sorted(order, key=int) == list(map(str, range(100)))


def test_memory_does_not_grow_with_the_tokens(tiny_model, tmp_path):
    """From 10M to 30M tokens the peak memory of a process grows by less than 1 byte a token. (Below 10M, buffers still
    grow, and runs differ by 10 MB. LOG.md also has 50M.)"""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from utils.tokenizer import load_tokenizer, write_documents\n"
        "tokenizer = load_tokenizer(sys.argv[1])\n"
        "texts = lambda: (f'Document {n}: ' + 'some words about a thing. ' * 150 for n in range(10**6))\n"
        "made = write_documents(Path(sys.argv[2]), texts, tokenizer, {}, int(sys.argv[3]))\n"
        f"print(made['tokens'], {PEAK})\n"
    )
    peaks = []
    for limit in (10_000_000, 30_000_000):
        command = [sys.executable, "-c", code, str(tiny_model), str(tmp_path / "a.bin"), str(limit)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        peaks.append([int(number) for number in out.splitlines()[-1].split()])
    ((small, small_peak), (large, large_peak)) = peaks
    assert (large_peak - small_peak) / (large - small) < 1


def test_without_a_network_the_hub_is_not_asked_for_half_a_minute(tmp_path):
    code = "from utils.tokenizer import load_tokenizer; from utils.errors import run; run(lambda: load_tokenizer('no/such'))"
    environment = {
        name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE" and "proxy" not in name.lower()
    }
    environment |= {"HF_ENDPOINT": "https://no.such.host.invalid", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --tokenizer no/such: not a folder, and could not be loaded from the Hub")
    assert done.stderr.count("\n") == 1  # not a line for each of five tries
