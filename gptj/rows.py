"""Rows of training data: their order, and their form."""

import numpy as np

from utils.token_file import IGNORE_INDEX


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
    batch at the end of an epoch; otherwise the next epoch starts within that batch.
    """
    kept = rows // bs * bs if drop_last else rows
    if not kept or not steps:
        return np.empty(0, np.int64)
    epochs = -(-steps * bs // kept)
    orders = [
        np.arange(rows) if seed is None else np.random.default_rng([seed, epoch]).permutation(rows)
        for epoch in range(epochs)
    ]
    return np.concatenate([order[:kept] for order in orders])[: steps * bs]
