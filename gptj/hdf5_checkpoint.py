"""Reader of the HDF5 checkpoints (.mdl) of releases 2.0 to 2.5 (format 0.4) and 2.6 to 2.10 (format 0.5).

A file has one dataset per tensor, named by its path joined with dots. Pickles and references to other files are
refused by name, and nothing in the file is run: the attribute `__spec__`, a pickle in format 0.4, is not read.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import h5py
import hdf5plugin  # noqa: F401  registers LZ4, with which the tensors are compressed
import torch

from utils.errors import DAMAGE, UserError, first_line

SIGNATURE = b"\x89HDF\r\n\x1a\n"
METADATA = ".__metadata__"  # suffix of the attributes of format 0.5
CONSTANTS = ("DeferredFullTensor", "FullTensorH5Type")
TENSORS = ("TorchTensorH5Type", "TorchTensorSerializer", "DeferredTorchTensor")
# Entries of format 0.4 without a tensor.
OTHERS = {"ScalarH5Type", "StringH5Type", "NoneH5Type", "NumpyArrayH5Type"}
MAX_LINKS = 8  # from one tied tensor to the next


def is_hdf5(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def load_hdf5(path: Path) -> dict:
    """`model`: tensors by cs-1.8's names; `global_step` of a training run; `optimizer`, empty, where the file has one.

    Raises UserError for a damaged or partly written file, another format, a pickle, or a reference to another file.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read(file, path)
    except (*DAMAGE, OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}); convert or copy it again, or use an earlier one"
        ) from error


def _read(file: h5py.File, path: Path) -> dict:
    version = file.attrs.get("__version__")
    if version is None or round(float(version), 2) not in (0.4, 0.5):
        number = "no format number" if version is None else f"format {float(version):g}"
        raise UserError(f"{path}: {number}; formats 0.4 and 0.5 (releases 2.0 to 2.10) are supported")
    if float(version) >= 0.45 and not file.attrs.get("__SUCCESS__", False):
        raise UserError(f"{path}: partly written, without its attribute __SUCCESS__; copy the checkpoint again")
    content, entries = {"model": {}}, dict(_entries(file, path))
    for name, (dataset, facts) in entries.items():
        _refuse_unsafe(name, dataset, facts, path)
    for name, (dataset, facts) in entries.items():
        if name == "global_step":
            content["global_step"] = int(dataset[()]) if dataset is not None else int(facts["scalar_value"])
        elif name.startswith("optimizer."):
            content["optimizer"] = {}
        elif name.startswith("model.") and (tensor := _tensor(name, entries, path)) is not None:
            content["model"][name.removeprefix("model.")] = tensor
    if not content["model"]:
        raise UserError(f"{path}: holds no tensor of a model")
    return content


def _entries(file: h5py.File, path: Path) -> Iterator[tuple[str, tuple[h5py.Dataset | None, dict]]]:
    """Name -> dataset, None for an entry of format 0.5 that is described only, and what describes it."""
    for quoted in file:
        if isinstance(file.get(quoted, getlink=True), h5py.ExternalLink | h5py.SoftLink):
            raise UserError(f"{path}: {quoted} lies in another file; only checkpoints in one file are read")
        if not isinstance(dataset := file[quoted], h5py.Dataset):
            raise UserError(f"{path}: {quoted} is a group, not a tensor; not a checkpoint of releases 2.0 to 2.10")
        yield unquote(quoted), (dataset, dict(dataset.attrs))
    for key, text in file.attrs.items():
        name = key.removesuffix(METADATA)
        if key.endswith(METADATA) and name not in file:
            try:
                yield name, (None, json.loads(text)[key])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path}: the description of {name} is damaged") from error


def _type(facts: dict) -> str:
    return str(facts.get("__H5_TYPE__") or facts.get("__TYPE__"))


def _refuse_unsafe(name: str, dataset: h5py.Dataset | None, facts: dict, path: Path) -> None:
    elsewhere = facts.get("filepath", facts.get("path"))
    if elsewhere is not None or (dataset is not None and (dataset.external or dataset.is_virtual)):
        where = f" ({elsewhere})" if elsewhere is not None else ""
        raise UserError(f"{path}: {name} lies in another file{where}; only checkpoints in one file are read")
    kind = _type(facts)
    if "object" in kind.lower().replace("linkedobject", "") or "pickle" in kind.lower():
        raise UserError(f"{path}: refused, since {name} is a pickle ({kind}), which can run code")


def _tensor(name: str, entries: dict, path: Path) -> torch.Tensor | None:
    """The tensor of an entry, or of the one that it is tied to; None for one without a tensor."""
    for _ in range(MAX_LINKS):
        if name not in entries:
            raise UserError(f"{path}: a tensor is tied to {name}, which is missing")
        dataset, facts = entries[name]
        if not facts.get("__LINKED__"):
            break
        name = str(facts["key"])
    else:
        raise UserError(f"{path}: {name} is tied in a circle")
    kind = _type(facts)
    if kind in CONSTANTS:
        return _constant(name, dataset, facts, path)
    if kind in OTHERS or (dataset is not None and dataset.shape is None):
        return None
    if dataset is None and not kind.startswith("Deferred"):  # a scalar, a string or None of format 0.5
        return None
    if kind not in TENSORS or dataset is None:
        raise UserError(f"{path}: {name} is of type {kind}, which is not supported")
    array = dataset[()]
    tensor = torch.from_numpy(array) if array.ndim else torch.tensor(array)
    dtypes = facts.get("dtypes")
    dtype = (
        str(dtypes[0]) if dtypes is not None else "torch.bfloat16" if facts.get("is_bfloat16") else str(tensor.dtype)
    )
    if dtype == "torch.bfloat16" and tensor.dtype == torch.int16:
        tensor = tensor.view(torch.bfloat16)
    if str(tensor.dtype) != dtype:
        raise UserError(f"{path}: {name} is {dtype}, stored as {tensor.dtype}, which is not supported")
    return tensor


def _constant(name: str, dataset: h5py.Dataset | None, facts: dict, path: Path) -> torch.Tensor:
    """A tensor of which every element is the same."""
    if (value := facts.get("fill_value")) is None:
        raise UserError(f"{path}: {name} has no values")
    stored = dataset.dtype if dataset is not None else facts["dtype"]
    dtype = torch.bfloat16 if facts.get("is_bfloat16") else getattr(torch, str(stored).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"{path}: {name} is of type {stored}, which is not supported")
    return torch.full([int(size) for size in facts["shape"]], float(value), dtype=dtype)
