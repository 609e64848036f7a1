"""Checkpoints of releases 2.x: both formats, every kind of entry, and what is refused."""

import json
import pickle
from pathlib import Path
from urllib.parse import quote

import h5py
import hdf5plugin
import numpy as np
import pytest
import torch

from gptj.hdf5_checkpoint import METADATA, load_hdf5
from gptj.weight_files import load_mdl
from tests.gptj.conftest import losses
from utils.errors import UserError

WEIGHTS = {
    "ln_f.weight": torch.randn(4),
    "lm_head.weight": torch.randn(3, 4),
    "half.weight": torch.randn(3, 4).bfloat16(),
}


def stored(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def write_04(path: Path, weights: dict, prefix: str = "model.") -> None:
    with h5py.File(path, "w") as file:
        file.attrs["__version__"] = 0.4
        file.attrs["__spec__"] = pickle.dumps("never loaded").hex()
        for name, tensor in weights.items():
            dataset = file.create_dataset(quote(prefix + name, safe="."), data=stored(tensor), **hdf5plugin.LZ4())
            dataset.attrs["__H5_TYPE__"] = "TorchTensorH5Type"
            dataset.attrs["is_bfloat16"] = tensor.dtype == torch.bfloat16


def write_05(path: Path, weights: dict, prefix: str = "model.") -> None:
    with h5py.File(path, "w") as file:
        file.attrs["__version__"], file.attrs["__SUCCESS__"] = 0.5, True
        for name, tensor in weights.items():
            dataset = file.create_dataset(prefix + name, data=stored(tensor), **hdf5plugin.LZ4())
            dataset.attrs["__TYPE__"] = "TorchTensorSerializer"
            dataset.attrs["dtypes"] = [str(tensor.dtype)]


def describe_05(path: Path, name: str, **facts) -> None:
    """An entry of format 0.5 without a dataset."""
    with h5py.File(path, "a") as file:
        file.attrs[f"{name}{METADATA}"] = json.dumps({"__objects__": [name], f"{name}{METADATA}": facts})


WRITERS = {"0.4": write_04, "0.5": write_05}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("prefix", ["model.", "model.model."])
def test_tensors(tmp_path, write, prefix):
    write(tmp_path / "x.mdl", WEIGHTS, prefix)
    loaded = load_mdl(tmp_path / "x.mdl")["model"]
    assert loaded.keys() == {f"{prefix}{name}".removeprefix("model.") for name in WEIGHTS}
    for name, tensor in WEIGHTS.items():
        read = loaded[f"{prefix}{name}".removeprefix("model.")]
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_other_entries_of_format_04(tmp_path):
    write_04(path := tmp_path / "x.mdl", WEIGHTS | {"odd/name.weight": torch.ones(2)})
    with h5py.File(path, "a") as file:
        file.create_dataset("global_step", data=7).attrs["__H5_TYPE__"] = "ScalarH5Type"
        file.create_dataset("model.none", data=h5py.Empty("f4")).attrs["__H5_TYPE__"] = "NoneH5Type"
        file.create_dataset("name", data=h5py.Empty("f4")).attrs.update(
            {"__H5_TYPE__": "StringH5Type", "string_value": "x"}
        )
        constant = file.create_dataset("model.constant", data=h5py.Empty("f4"))
        constant.attrs.update({"__H5_TYPE__": "DeferredFullTensor", "shape": (2, 3), "fill_value": 1.5})
        file.create_dataset("optimizer.state.0.step", data=7).attrs["__H5_TYPE__"] = "ScalarH5Type"
    loaded = load_hdf5(path)
    assert loaded["global_step"] == 7
    assert loaded["optimizer"] == {}
    assert torch.equal(loaded["model"]["constant"], torch.full((2, 3), 1.5))
    assert "odd/name.weight" in loaded["model"]
    assert "none" not in loaded["model"]


def test_other_entries_of_format_05(tmp_path):
    write_05(path := tmp_path / "x.mdl", WEIGHTS)
    describe_05(path, "global_step", __TYPE__="ScalarSerializer", scalar_value=9)
    describe_05(path, "model.norm.weight", __TYPE__="LinkedObject", __LINKED__=True, key="model.ln_f.weight")
    describe_05(
        path, "model.constant", __TYPE__="DeferredFullTensor", shape=[2, 3], dtype="torch.bfloat16", fill_value=0
    )
    loaded = load_hdf5(path)
    assert loaded["global_step"] == 9
    assert torch.equal(loaded["model"]["norm.weight"], WEIGHTS["ln_f.weight"])
    assert torch.equal(loaded["model"]["constant"], torch.zeros(2, 3, dtype=torch.bfloat16))


def add_pickle(file: h5py.File) -> None:
    content = np.frombuffer(pickle.dumps(print), np.uint8)
    file.create_dataset("model.evil", data=content).attrs["__H5_TYPE__"] = "ObjectH5Type"


def add_pickle_05(file: h5py.File) -> None:
    content = np.frombuffer(pickle.dumps(print), np.uint8)
    file.create_dataset("model.evil", data=content).attrs["__TYPE__"] = "PickleObjectSerializer"


def add_file(file: h5py.File) -> None:
    dataset = file.create_dataset("model.evil", data=h5py.Empty("f4"))
    dataset.attrs.update({"__H5_TYPE__": "DeferredFileTensor", "filepath": "/etc/passwd", "shape": (2,)})


def add_external_link(file: h5py.File) -> None:
    file["model.evil"] = h5py.ExternalLink("/etc/passwd", "x")


def add_external_storage(file: h5py.File) -> None:
    dataset = file.create_dataset("model.evil", (4,), "u1", external=[("/etc/passwd", 0, 4)])
    dataset.attrs["__H5_TYPE__"] = "TorchTensorH5Type"


def add_virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (4,))
    file.create_virtual_dataset("model.evil", layout).attrs["__H5_TYPE__"] = "TorchTensorH5Type"


def add_safetensor(file: h5py.File) -> None:
    facts = {"__TYPE__": "DeferredSafeTensor", "path": "/etc/passwd", "key": "x"}
    file.attrs[f"model.evil{METADATA}"] = json.dumps({f"model.evil{METADATA}": facts})


def add_graph(file: h5py.File) -> None:
    facts = {"__TYPE__": "DeferredGraphTensor", "jit_graph": "graph()", "shape": [2]}
    file.attrs[f"model.evil{METADATA}"] = json.dumps({f"model.evil{METADATA}": facts})


def add_circle(file: h5py.File) -> None:
    facts = {"__LINKED__": True, "key": "model.evil"}
    file.attrs[f"model.evil{METADATA}"] = json.dumps({f"model.evil{METADATA}": facts})


def add_dangling_tie(file: h5py.File) -> None:
    facts = {"__LINKED__": True, "key": "model.nowhere"}
    file.attrs[f"model.evil{METADATA}"] = json.dumps({f"model.evil{METADATA}": facts})


def add_odd_constant(file: h5py.File) -> None:
    facts = {"__TYPE__": "DeferredFullTensor", "shape": [2], "dtype": "torch.float99", "fill_value": 1}
    file.attrs[f"model.evil{METADATA}"] = json.dumps({f"model.evil{METADATA}": facts})


def add_text(file: h5py.File) -> None:
    dataset = file.create_dataset("model.evil", data="text")
    dataset.attrs["__TYPE__"] = "TorchTensorSerializer"


def add_torn_description(file: h5py.File) -> None:
    file.attrs[f"model.evil{METADATA}"] = "{"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_pickle, "refused, since model.evil is a pickle"),
        (add_pickle_05, "refused, since model.evil is a pickle"),
        (add_file, r"model.evil lies in another file \(/etc/passwd\)"),
        (add_external_link, "model.evil lies in another file"),
        (add_external_storage, "model.evil lies in another file"),
        (add_virtual, "model.evil lies in another file"),
        (add_safetensor, r"model.evil lies in another file \(/etc/passwd\)"),
        (add_graph, "model.evil is of type DeferredGraphTensor, which is not supported"),
        (add_circle, "tied in a circle"),
        (add_torn_description, "the description of model.evil is damaged"),
        (lambda file: file.attrs.__setitem__("__version__", 0.3), "format 0.3; formats 0.4 and 0.5"),
        (lambda file: file.attrs.__delitem__("__version__"), "no format number"),
        (lambda file: file.attrs.__delitem__("__SUCCESS__"), "partly written"),
        (lambda file: file.attrs.__setitem__("__SUCCESS__", False), "partly written"),
        (lambda file: file.attrs.__setitem__("__version__", "abc"), "damaged"),
        (add_dangling_tie, "a tensor is tied to model.nowhere, which is missing"),
        (add_odd_constant, "model.evil is of type torch.float99"),
        (add_text, "damaged|not supported"),
        (lambda file: file.create_group("model.group"), "model.group is a group"),
    ],
)
def test_what_is_refused(tmp_path, change, message):
    write_05(path := tmp_path / "x.mdl", WEIGHTS)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(UserError, match=message) as caught:
        load_hdf5(path)
    assert str(path) in str(caught.value)


def test_damaged_files(tmp_path):
    write_04(path := tmp_path / "x.mdl", {"a": torch.randn(400, 400)})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_mdl(path)
    with h5py.File(path, "w") as file:
        file.attrs["__version__"] = 0.4
    with pytest.raises(UserError, match="holds no tensor of a model"):
        load_mdl(path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_training_starts_from_one(tmp_path, params, run_gptj, write):
    """The same losses as from the .mdl of 1.8 with these weights."""
    run_gptj(params, "--mode", "train", "--max_steps", 2)
    weights = load_mdl(tmp_path / "m/checkpoint_2.mdl")["model"]
    torch.save({"model": weights}, tmp_path / "old.mdl")
    write(tmp_path / "new.mdl", weights)
    results = []
    for name in ("old", "new"):
        for path in (tmp_path / "m").glob("*.mdl"):
            path.unlink()
        run_gptj(params, "--mode", "train", "--max_steps", 2, "--checkpoint_path", tmp_path / f"{name}.mdl")
        results.append(losses(tmp_path))
    assert results[0] == results[1]
    with h5py.File(tmp_path / "new.mdl", "a") as file:
        file.create_dataset("optimizer.x", data=7).attrs["__H5_TYPE__"] = "ScalarH5Type"
        file.create_dataset("global_step", data=2).attrs["__H5_TYPE__"] = "ScalarH5Type"
    with pytest.raises(UserError, match="its optimizer state comes from another program"):
        run_gptj(params, "--mode", "train", "--max_steps", 4, "--checkpoint_path", tmp_path / "new.mdl")
