"""Rows of training data: their order, and their form."""

import numpy as np

from utils.errors import UserError
from utils.token_file import IGNORE_INDEX

MOST_ROWS = 10**9  # of a run: 8 bytes each in memory


def training_row(ids, mask, labels) -> dict:
    """{"input_ids", "labels", "shift_labels"} of a row, each (length,) int64; the labels are already shifted, and
    IGNORE_INDEX where the loss mask is 0."""
    import torch  # here, since create_hdf5.py imports this module for --help

    ids, mask, labels = (torch.from_numpy(np.asarray(values, np.int64)) for values in (ids, mask, labels))
    labels = labels.where(mask > 0, IGNORE_INDEX)
    return {"input_ids": ids, "labels": labels, "shift_labels": labels}


def row_order(rows: int, bs: int, steps: int, drop_last: bool, seed: int | None) -> np.ndarray:
    """Row numbers of `steps` batches of `bs`, (steps * bs,) int64.

    Every epoch has its own permutation (seed None: the order of the files). `drop_last` leaves out an incomplete
    batch at the end of an epoch; otherwise the next epoch starts within that batch. Raises UserError above MOST_ROWS.
    """
    kept = rows // bs * bs if drop_last else rows
    if not kept or not steps:
        return np.empty(0, np.int64)
    if steps * bs > MOST_ROWS:
        raise UserError(f"{steps:,} steps of {bs} rows are {steps * bs:,} rows in all; at most {MOST_ROWS:,}")
    order = np.empty(steps * bs, np.int64)
    for epoch, begin in enumerate(range(0, len(order), kept)):
        numbers = np.arange(rows) if seed is None else np.random.default_rng([seed, epoch]).permutation(rows)
        order[begin : begin + kept] = numbers[: min(kept, len(order) - begin)]
    return order
