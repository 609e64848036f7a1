"""Items of a data loader of the user's own: what they must be, and their rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from gptj.rows import training_row
from utils.errors import UserErrors

FEATURES = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Checked:
    """The form of the first item, which all others must have: one row of `length` tokens or, where `batched`, `bs` of
    them. `where` names the section and the loader in errors."""

    where: str
    bs: int
    length: int
    batched: bool
    vocab_size: int

    def rows(self, item: object, batch: int, may_be_smaller: bool = True) -> list[dict]:
        """The rows of an item. Raises UserErrors, one for each fault, where it is not what it must be."""
        if faults := find_faults(item, self, may_be_smaller):
            raise UserErrors("\n".join(f"{self.where}: batch {batch}: {fault}" for fault in faults))
        arrays = [np.asarray(item[name]).reshape(-1, self.length) for name in FEATURES]
        return [training_row(*row) for row in zip(*arrays, strict=True)]


def find_faults(item: object, checked: Checked, may_be_smaller: bool) -> list[str]:
    """A line per fault; the same fault of several features is one line."""
    if not isinstance(item, Mapping):
        return [f"{type(item).__name__}, must be a dictionary of {', '.join(FEATURES)}"]
    faults: dict[str, list[str]] = {}
    for name in FEATURES:
        for fault in _feature_faults(name, item, checked, may_be_smaller):
            faults.setdefault(fault, []).append(name)
    shapes = {tuple(item[name].shape) for name in FEATURES} if not faults else ()
    if len(shapes) > 1:
        return [f"different shapes: {', '.join(map(str, sorted(shapes)))}"]
    return [f"{', '.join(names)}: {fault}" for fault, names in faults.items()]


def _feature_faults(name: str, item: Mapping, checked: Checked, may_be_smaller: bool) -> list[str]:
    if name not in item:
        return [f"missing; the item has {', '.join(map(str, item)) or 'no keys'}"]
    values = item[name]
    if not isinstance(values, torch.Tensor | np.ndarray):
        return [f"{type(values).__name__}, must be a tensor or an array of int32"]
    if isinstance(values, torch.Tensor) and (values.layout != torch.strided or values.device.type != "cpu"):
        return [f"a tensor of {values.layout} on {values.device}, must be a dense one on the CPU"]
    kind = str(values.dtype).removeprefix("torch.")
    faults, shape = [], tuple(values.shape)
    wanted = (checked.bs, checked.length) if checked.batched else (checked.length,)
    smaller = checked.batched and may_be_smaller and len(shape) == 2 and 0 < shape[0] < checked.bs
    if shape != wanted and not (smaller and shape[1] == checked.length):
        faults.append(f"shape {shape}, must be {wanted}")
    outside = None
    if kind in ("int8", "uint8", "int16", "int32", "int64") and 0 not in shape:
        outside = _range_fault(name, np.asarray(values), checked.vocab_size)
    if kind != "int32":
        faults.append(f"{kind}, must be int32" + (f", and {outside}" if outside else ""))
    elif outside:
        faults.append(outside)
    return faults


def _range_fault(name: str, values: np.ndarray, vocab_size: int) -> str | None:
    low, high = values.min(), values.max()
    if name == "attention_mask":
        return f"value {low if low < 0 else high}; only 0 and 1 are possible" if low < 0 or high > 1 else None
    wrong = low if low < 0 else high
    return f"token id {wrong}; model.vocab_size is {vocab_size}" if low < 0 or high >= vocab_size else None
