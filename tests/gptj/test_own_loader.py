"""Data loaders of the user's own: the same losses as HDF5 files, resumption, and malformed loaders."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gptj import own_loader
from gptj.features import FEATURES, Checked
from tests.conftest import ROOT
from tests.gptj.conftest import losses, random_rows
from utils.errors import UserError, UserErrors

LOADERS = '''
import itertools
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

NAMES = ("input_ids", "attention_mask", "labels")
ROWS = np.load({path!r}).astype(np.int32)


def item(row):
    return dict(zip(NAMES, torch.from_numpy(row)))


class Map:
    def __init__(self, params):
        self.rows = ROWS[: params.get("use", len(ROWS))]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return item(self.rows[number])


class MapOfBatches(Map):
    def __len__(self):
        return -(-len(self.rows) // 4)

    def __getitem__(self, number):
        return {{name: self.rows[4 * number : 4 * number + 4, part] for part, name in enumerate(NAMES)}}


class Stream(IterableDataset):
    def __init__(self, params):
        pass

    def __iter__(self):
        return map(item, ROWS)


def generate(params):
    for row in ROWS:
        yield item(row)


def generate_batches(params):
    for start in range(0, len(ROWS), 4):
        yield {{name: torch.from_numpy(ROWS[start : start + 4, part]) for part, name in enumerate(NAMES)}}


class Processor:
    """As the published data processors."""

    def __init__(self, params):
        self.bs = params["batch_size"]

    def create_dataloader(self):
        return DataLoader(Map({{}}), self.bs)


def changed(at, change):
    """The rows, from number `at` on changed by a function."""
    for number, row in enumerate(itertools.cycle(ROWS)):
        made = item(row)
        yield change(made) if number >= at else made


def replace(**features):
    return lambda made: made | {{name: change(made[name]) for name, change in features.items()}}


def wrong_dtype(params):
    return changed(params["at"], replace(labels=lambda values: values.float()))

def missing_key(params):
    return changed(params["at"], lambda made: {{name: made[name] for name in NAMES[:2]}})

def ragged(params):
    return changed(params["at"] + 1, lambda made: {{name: values[:-3] for name, values in made.items()}})

def beyond(params):
    return changed(params["at"], replace(input_ids=lambda values: values.long() + 10**6))

def empty(params):
    return []

def endless_none(params):
    return itertools.chain(map(item, ROWS[: params["at"]]), itertools.repeat(None))

def raising(params):
    return changed(params["at"], lambda made: 1 / 0)

def other_length(params):
    return changed(params["at"], replace(labels=lambda values: values[:-1]))

def negative(params):
    return changed(params["at"], replace(labels=lambda values: values - 1000))

def mask_of_two(params):
    return changed(params["at"], replace(attention_mask=lambda values: values * 2))

def lists(params):
    return changed(params["at"], replace(labels=lambda values: values.tolist()))

def text(params):
    return 7

not_callable = 3
'''


@pytest.fixture
def loader(tmp_path):
    """The path of a module with loaders of the rows that `params` has as HDF5 files."""
    np.save(tmp_path / "rows.npy", np.concatenate([random_rows(13), random_rows(8)]))
    path = tmp_path / "my_loaders.py"
    path.write_text(LOADERS.format(path=str(tmp_path / "rows.npy")))
    return path


def own(params: dict, loader: Path, name: str, **keys) -> dict:
    section = {"data_processor": f"{loader}:{name}", "batch_size": 4} | keys
    return params | {"train_input": section, "eval_input": section | {"drop_last": False}}


@pytest.mark.parametrize("name", ["Map", "MapOfBatches", "Stream", "generate", "generate_batches", "Processor"])
def test_losses_equal_those_of_hdf5(tmp_path, params, run_gptj, loader, name):
    """Over more than an epoch."""
    params["train_input"]["shuffle"] = False
    params["eval_input"]["drop_last"] = False
    run_gptj(params, "--mode", "train_and_eval", "--max_steps", 8)
    expected = losses(tmp_path)
    (tmp_path / "m/checkpoint_8.mdl").unlink()
    (tmp_path / "m/checkpoint_6.mdl").unlink()
    run_gptj(own(params, loader, name), "--mode", "train_and_eval", "--max_steps", 8)
    assert losses(tmp_path) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_map_style_dataset_is_shuffled_and_resumes(tmp_path, params, run_gptj, loader, workers, capsys):
    run_gptj(params, "--mode", "train", "--max_steps", 8)
    expected = losses(tmp_path)
    for path in (tmp_path / "m").glob("*.mdl"):
        path.unlink()
    params = own(params, loader, "Map", shuffle=True, shuffle_seed=7, num_workers=workers)
    for last in (3, 8):
        run_gptj(params, "--mode", "train", "--max_steps", last)
    assert losses(tmp_path) == expected
    assert "passed over" not in capsys.readouterr().out
    params["train_input"]["use"] = 12
    with pytest.raises(UserError, match=r"other train_input\.(rows|use)"):
        run_gptj(params, "--mode", "train", "--max_steps", 9)


@pytest.mark.parametrize("name", ["Stream", "generate", "generate_batches"])
def test_an_iterable_is_read_again_to_the_place_where_training_resumes(
    tmp_path, params, run_gptj, loader, name, capsys
):
    params = own(params, loader, name)
    run_gptj(params, "--mode", "train", "--max_steps", 8)
    expected = losses(tmp_path)
    for path in (tmp_path / "m").glob("*.mdl"):
        path.unlink()
    run_gptj(params, "--mode", "train", "--max_steps", 6)
    capsys.readouterr()
    run_gptj(params, "--mode", "train", "--max_steps", 8)
    assert losses(tmp_path) == expected
    assert "24 rows are read and passed over" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no length; give max_steps"):
        run_gptj(params, "--mode", "train", "--num_epochs", 9)


def test_only_the_last_batch_may_be_smaller(params, run_gptj, loader):
    text = loader.read_text().replace("ROWS[start : start + 4, part]", "ROWS[start : start + 4 - (start == 8), part]")
    loader.write_text(text)
    with pytest.raises(UserError, match="batch 3: follows one of less than 4 rows"):
        run_gptj(own(params, loader, "generate_batches"), "--mode", "train")
    text = text.replace(
        "self.rows[4 * number : 4 * number + 4, part]", "self.rows[4 * number : 4 * number + 4 - (number == 2), part]"
    )
    loader.write_text(text)
    with pytest.raises(UserError, match=r"batch 3: .*: shape \(3, 24\), must be \(4, 24\)"):
        run_gptj(own(params, loader, "MapOfBatches"), "--mode", "train")


MALFORMED = {
    "wrong_dtype": "labels: float32, must be int32",
    "missing_key": "labels: missing; the item has input_ids, attention_mask",
    "ragged": r"input_ids, attention_mask, labels: shape \(21,\), must be \(24,\)",
    "beyond": r"input_ids: int64, must be int32, and token id 10000\d\d; model.vocab_size is 60",
    "endless_none": "NoneType, must be a dictionary of input_ids, attention_mask, labels",
    "raising": "raised ZeroDivisionError: division by zero",
    "other_length": r"labels: shape \(23,\), must be \(24,\)",
    "negative": r"labels: token id -\d+; model.vocab_size is 60",
    "mask_of_two": "attention_mask: value 2; only 0 and 1 are possible",
    "lists": "labels: list, must be a tensor or an array of int32",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("at", [0, 10])
def test_malformed_loaders_are_refused_by_batch(params, run_gptj, loader, capsys, name, at):
    """In the first batch, before training, and later."""
    params = own(params, loader, name, at=at)
    with pytest.raises(UserError, match=MALFORMED[name]) as caught:
        run_gptj(params, "--mode", "train")
    assert "\n" not in str(caught.value)
    assert f"batch {3 if at else 1}" in str(caught.value)
    assert f"{loader}:{name}" in str(caught.value)
    if at == 0:
        assert "Train Device" not in capsys.readouterr().out


def test_a_fault_in_a_worker_is_one_line(params, run_gptj, loader):
    loader.write_text(
        loader.read_text().replace(
            "return item(self.rows[number])", "return item(self.rows[number][:, int(number == 9):])"
        )
    )
    params = own(params, loader, "Map", num_workers=2)
    with pytest.raises(UserError, match=r"batch 3: input_ids, attention_mask, labels: shape \(23,\), must be \(24,\)$"):
        run_gptj(params, "--mode", "train")


def test_a_line_per_fault(params, run_gptj, loader):
    loader.write_text(
        loader.read_text() + "\n\ndef two(params):\n    return [{'input_ids': [1], 'labels': ROWS[0, 0]}]\n"
    )
    with pytest.raises(UserErrors, match="attention_mask: missing") as caught:
        run_gptj(own(params, loader, "two", max_sequence_length=24), "--mode", "train")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and "batch 1: input_ids: list, must be a tensor" in lines[0]


MORE = '''

class OneShot:
    """Its iterator is used up by the first reading."""

    def __init__(self, params):
        self.items = map(item, ROWS)

    def __iter__(self):
        return self.items


USED_UP = map(item, ROWS)

def used_up(params):
    return USED_UP

def random_rows(params):
    return map(item, ROWS[np.random.permutation(len(ROWS))])

def shuffling(params):
    return DataLoader(Map({}), params["batch_size"], shuffle=True)

class OwnError(Exception):
    pass

def own_error(params):
    yield item(ROWS[0])
    raise OwnError("boom")

def leaving(params):
    raise SystemExit(0)

class Stopping(Map):
    def __getitem__(self, number):
        raise StopIteration

class NoLength(Map):
    def __len__(self):
        raise OwnError("no length")

def rows_then_batches(params):
    yield from map(item, ROWS[:6])
    yield {name: torch.from_numpy(ROWS[:4, part]) for part, name in enumerate(NAMES)}

class MixedMap(Map):
    def __getitem__(self, number):
        return item(self.rows[number]) if number < 5 else {name: self.rows[:4, part] for part, name in enumerate(NAMES)}

def ragged_lists(params):
    return [{name: [[1, 2], [3]] for name in NAMES}]

def bfloat(params):
    return [item(ROWS[0]) | {"attention_mask": torch.ones(24, dtype=torch.bfloat16, requires_grad=True)}]

def sparse(params):
    return [item(ROWS[0]) | {"labels": torch.ones(24).to_sparse()}]

def no_tokens(params):
    return [{name: np.zeros(0, np.int32) for name in NAMES}]

def picky(params):
    assert params.get("max_sequence_length", 24) == 24 and params["vocab_size"] == 60
    return Map(params)
'''


@pytest.fixture
def more(loader):
    loader.write_text(loader.read_text() + MORE)
    return loader


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("used_up", "gives other rows when it is called again"),
        ("random_rows", "gives other rows when it is called again"),
        ("own_error", "batch 1: raised OwnError: boom"),
        ("leaving", "raised SystemExit"),
        ("Stopping", "raised StopIteration"),
        ("NoLength", "raised OwnError: no length"),
        ("rows_then_batches", r"batch 2: input_ids, attention_mask, labels: shape \(4, 24\), must be \(24,\)"),
        ("MixedMap", r"shape \(4, 24\), must be \(24,\)"),
        ("ragged_lists", "input_ids, attention_mask, labels: list, must be a tensor"),
        ("bfloat", "attention_mask: bfloat16, must be int32"),
        ("sparse", "labels: a tensor of torch.sparse_coo on cpu"),
        ("no_tokens", r"shape \(0,\), must be \(1,\)"),
    ],
)
def test_more_malformed_loaders(params, run_gptj, more, name, message):
    with pytest.raises(UserError, match=message):
        run_gptj(own(params, more, name), "--mode", "train")


@pytest.mark.parametrize("name", ["OneShot", "picky"])
def test_more_loaders(tmp_path, params, run_gptj, more, name):
    params["train_input"]["shuffle"] = False
    run_gptj(params, "--mode", "train", "--max_steps", 6)
    expected = losses(tmp_path)
    (tmp_path / "m/checkpoint_6.mdl").unlink()
    run_gptj(own(params, more, name), "--mode", "train", "--max_steps", 6)
    assert losses(tmp_path) == expected


def test_a_dataloader_that_shuffles_resumes_with_its_order(tmp_path, params, run_gptj, more):
    params = own(params, more, "shuffling")
    params["model"] |= {"residual_dropout_rate": 0.1}
    run_gptj(params, "--mode", "train", "--max_steps", 8)
    expected = losses(tmp_path)
    for path in (tmp_path / "m").glob("*.mdl"):
        path.unlink()
    for last in (6, 8):
        run_gptj(params, "--mode", "train", "--max_steps", last)
    assert losses(tmp_path) == expected


def test_a_fault_in_a_worker_of_the_evaluation_is_one_line(params, run_gptj, loader):
    loader.write_text(
        loader.read_text().replace(
            "return item(self.rows[number])", "return item(self.rows[number][:, int(number == 9):])"
        )
    )
    params["eval_input"] = {"data_processor": f"{loader}:Map", "batch_size": 4, "num_workers": 1}
    run_gptj(params, "--mode", "train", "--max_steps", 1)
    with pytest.raises(UserError, match=r"^eval_input.*batch 3: .*: shape \(23,\), must be \(24,\)$"):
        run_gptj(params, "--mode", "eval")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "gives no rows"),
        ("text", "gives a int, which is neither a dataset nor an iterable"),
        ("not_callable", "has no class or function not_callable"),
        ("unknown", "has no class or function unknown"),
    ],
)
def test_loaders_that_give_no_data(params, run_gptj, loader, name, message):
    with pytest.raises(UserError, match=message):
        run_gptj(own(params, loader, name), "--mode", "train")


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ("GptHDF5MapProcessor", "give GptHDF5DataProcessor, module.Name, or path/to/file.py:Name"),
        ("nowhere.py:Map", "nowhere.py: no such file"),
        ("no_such_module.Map", "raised ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_names_of_no_loader(params, run_gptj, processor, message):
    params["train_input"] = {"data_processor": processor, "batch_size": 4}
    with pytest.raises(UserError, match=re.escape(message)):
        run_gptj(params, "--mode", "train")


def test_a_module_of_the_current_folder(monkeypatch, loader):
    monkeypatch.chdir(loader.parent)
    monkeypatch.syspath_prepend("")
    assert own_loader.find_loader("my_loaders.Map", "x").__name__ == "Map"


def test_lengths_are_checked(params, run_gptj, loader):
    with pytest.raises(UserError, match=r"shape \(24,\), must be \(16,\)"):
        run_gptj(own(params, loader, "Map", max_sequence_length=16), "--mode", "train")
    params["model"]["max_position_embeddings"] = 20
    with pytest.raises(UserError, match="rows of 24 tokens; model.max_position_embeddings is 20"):
        run_gptj(own(params, loader, "Map"), "--mode", "train")


def test_the_example_of_the_readme(tmp_path, params, run_gptj):
    readme = (ROOT / "gptj/README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    section = yaml.safe_load(re.search(r"```yaml\n(train_input:.*?)```", readme, re.S)[1])["train_input"]
    file, name = section["data_processor"].split(":")
    (tmp_path / file).write_text(code)
    np.arange(24 * 21 + 1, dtype=np.int32).tofile(tmp_path / section["bin_file"])
    section |= {"data_processor": f"{tmp_path / file}:{name}", "bin_file": str(tmp_path / section["bin_file"])}
    params["train_input"] = section | {"max_sequence_length": 24}
    params["model"]["vocab_size"] = 600
    run_gptj(params, "--mode", "train", "--max_steps", 3)
    assert len(losses(tmp_path)) == 3


def test_items_are_read_once_per_epoch():
    """An item of several rows is not read again for each of them."""
    reads = []

    class Batches:
        def __len__(self):
            return 3

        def __getitem__(self, number):
            reads.append(number)
            return {name: torch.ones(4, 5, dtype=torch.int32) for name in FEATURES}

    checked = Checked("x", 4, 5, True, 9)
    source = own_loader.OwnRows(Batches(), checked, {}, items=3, rows=12, per_item=4)
    rows = source.in_order(np.arange(12))
    assert len(list(itertools.islice((rows[i] for i in range(12)), 12))) == 12
    assert reads == [0, 1, 2]
