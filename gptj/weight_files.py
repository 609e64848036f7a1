"""Readers of checkpoint files: .mdl files of the published releases, and Hugging Face's formats. No file runs code."""

import struct
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gptj.hdf5_checkpoint import is_hdf5, load_hdf5
from utils.errors import DAMAGE, UserError, first_line
from utils.shards import shards_of_index

TORN = (AssertionError, EOFError, MemoryError, OSError, RuntimeError, struct.error, zipfile.BadZipFile)  # with DAMAGE
HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load_mdl(path: Path) -> dict:
    """Read a .mdl checkpoint: `model` and, from a training run, `optimizer`, `lr_scheduler`, `global_step`. Of an HDF5
    file (cs-2.x) only `model` is read."""
    loaded = load_hdf5(path) if is_hdf5(path) else load_torch(path)
    if not isinstance(loaded.get("model"), dict):
        raise UserError(
            f"{path}: has no `model` entry; convert a Hugging Face file with: python gptj/convert_checkpoint.py convert"
        )
    check_tensors(loaded["model"], path)
    return loaded


def load_hf(path: Path) -> dict:
    """Read tensors with Hugging Face names from a .safetensors or .bin file, an index of shards, or a folder."""
    if path.is_dir():
        weights = next((path / name for name in HF_FILES if (path / name).is_file()), None)
        if not weights:
            raise UserError(f"{path}: contains no weights (model.safetensors or pytorch_model.bin)")
        return load_hf(weights)
    if path.name.endswith(".index.json"):
        return {
            name: tensor for shard in shards_of_index(path) for name, tensor in load_hf(path.parent / shard).items()
        }
    if path.suffix != ".safetensors":
        return check_tensors(load_torch(path), path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: missing or damaged ({first_line(error)})") from error


def check_tensors(state: dict, path: Path) -> dict:
    """The state. Raises UserError for an entry that is no tensor."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
        if value.is_meta or value.layout != torch.strided:
            raise UserError(f"{path}: {name} is a tensor without its numbers, or a sparse one; write it as a dense one")
    return state


def load_torch(path: Path) -> dict:
    """Read a file of torch.save as data. Raises UserError for a file that could run code."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise UserError(f"{path}: refused, since it holds more than tensors ({first_line(error)})") from error
    except (*DAMAGE, *TORN) as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}); convert or copy it again, or use an earlier one"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not a checkpoint")
    return loaded
