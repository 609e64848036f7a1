"""Items of a data loader of the user's own: what they must be, and their rows."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from gptj.rows import training_row
from utils.errors import UserError

FEATURES = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Checked:
    """What an item must be; `where` names the section and the loader in errors."""

    where: str
    bs: int
    length: int
    vocab_size: int

    def rows(self, item: object, batch: int, may_be_smaller: bool = True) -> list[dict]:
        """The rows of an item. Raises UserError, with a fault per line, where it is not what it must be."""
        if faults := find_faults(item, self, may_be_smaller):
            for fault in faults[:-1]:
                print(f"error: {self.where}: batch {batch}: {fault}", file=sys.stderr)
            raise UserError(f"{self.where}: batch {batch}: {faults[-1]}")
        arrays = [np.asarray(item[name]) for name in FEATURES]
        return [training_row(*row) for row in zip(*(array.reshape(-1, self.length) for array in arrays), strict=True)]


def find_faults(item: object, checked: Checked, may_be_smaller: bool) -> list[str]:
    """A line per fault; the same fault of several features is one line."""
    if not isinstance(item, Mapping):
        return [f"{type(item).__name__}, must be a dictionary of {', '.join(FEATURES)}"]
    faults: dict[str, list[str]] = {}
    shapes = {np.shape(item[name]) for name in FEATURES if hasattr(item.get(name), "dtype")}
    batched = any(len(shape) == 2 for shape in shapes)
    for name in FEATURES:
        for fault in _feature_faults(name, item, checked, batched, may_be_smaller):
            faults.setdefault(fault, []).append(name)
    if not faults and len(shapes) > 1:
        return [f"different shapes: {', '.join(map(str, sorted(shapes)))}"]
    return [f"{', '.join(names)}: {fault}" for fault, names in faults.items()]


def _feature_faults(name: str, item: Mapping, checked: Checked, batched: bool, may_be_smaller: bool) -> list[str]:
    if name not in item:
        return [f"missing; the item has {', '.join(map(str, item)) or 'no keys'}"]
    if not isinstance(item[name], torch.Tensor | np.ndarray):
        return [f"{type(item[name]).__name__}, must be a tensor or an array of int32"]
    values = np.asarray(item[name])
    faults, shape = [], values.shape
    wanted = (checked.bs, checked.length) if batched else (checked.length,)
    smaller = (
        batched and may_be_smaller and len(shape) == 2 and 0 < shape[0] <= checked.bs and shape[1] == checked.length
    )
    if shape != wanted and not smaller:
        faults.append(f"shape {shape}, must be {wanted}")
    outside = _range_fault(name, values, checked.vocab_size) if values.dtype.kind in "iu" and values.size else None
    if values.dtype != np.int32:
        faults.append(f"{values.dtype}, must be int32" + (f", and {outside}" if outside else ""))
    elif outside:
        faults.append(outside)
    return faults


def _range_fault(name: str, values: np.ndarray, vocab_size: int) -> str | None:
    low, high = values.min(), values.max()
    if name == "attention_mask":
        return f"value {low if low < 0 else high}; only 0 and 1 are possible" if low < 0 or high > 1 else None
    wrong = low if low < 0 else high
    return f"token id {wrong}; model.vocab_size is {vocab_size}" if low < 0 or high >= vocab_size else None
