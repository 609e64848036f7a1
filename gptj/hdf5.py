"""HDF5 training files: a dataset over their rows, the order of the rows, and checks of the files.

A file has a dataset `data` (rows, 3, length) int32 (input ids, loss mask, labels already shifted) and an attribute
`n_examples`. gptj/create_hdf5.py writes them, with a manifest.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from gptj.params import Input, Params
from utils.errors import UserError
from utils.io import read_json
from utils.token_file import IGNORE_INDEX

MANIFEST = "data_params.json"  # settings, counts, and the sha256 of every file
UNFINISHED = ".settings.json"  # in a folder that create_hdf5.py has not finished
CHECKED_ROWS = 4096  # rows in memory at once


class Hdf5Rows:
    """A map-style dataset of rows in a given order.

    Item i is {"input_ids", "labels", "shift_labels"}, each (length,) int64; the labels are already shifted, and
    IGNORE_INDEX where the loss mask is 0. Files are opened in the process that reads them.

    files: in the order of their rows; counts: rows of each file; order: (items,) row numbers over all files.
    """

    def __init__(self, files: list[Path], counts: list[int], order: np.ndarray):
        self.files, self.starts, self.order = files, np.cumsum([0, *counts]), order
        self.opened: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self.order)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"opened": {}}  # an open file cannot be sent to a worker

    def __getitem__(self, index: int) -> dict:
        import torch  # here, since create_hdf5.py imports this module for --help

        ids, mask, labels = torch.from_numpy(self.row(index).astype(np.int64))
        labels = labels.where(mask > 0, IGNORE_INDEX)
        return {"input_ids": ids, "labels": labels, "shift_labels": labels}

    def row(self, index: int) -> np.ndarray:
        """(3, length) int32: input ids, loss mask, labels."""
        file, row = self._locate(index)
        if file not in self.opened:
            self.opened[file] = h5py.File(self.files[file], "r")["data"]
        return self.opened[file][row]

    def name(self, index: int) -> str:
        file, row = self._locate(index)
        return f"{self.files[file].name} row {row}"

    def _locate(self, index: int) -> tuple[int, int]:
        row = int(self.order[index])
        file = int(np.searchsorted(self.starts, row, "right")) - 1
        return file, row - int(self.starts[file])


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


@dataclass(frozen=True)
class InputData:
    """The checked files of one input section."""

    section: Input
    files: list[Path]
    counts: list[int]  # rows of each file
    length: int  # tokens of a row

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def steps(self, epochs: int) -> int:
        """Batches in `epochs`; without drop_last a batch may span two epochs."""
        bs = self.section.batch_size
        return epochs * (self.rows // bs) if self.section.drop_last else -(-epochs * self.rows // bs)

    def seed(self) -> int | None:
        return (self.section.shuffle_seed or 0) if self.section.shuffle else None

    def identity(self) -> dict:
        """The settings and files that decide which rows a step reads."""
        return {
            "train_input.data_dir": [f"{p.name}:{count}" for p, count in zip(self.files, self.counts, strict=True)],
            "train_input.batch_size": self.section.batch_size,
            "train_input.shuffle": self.section.shuffle,
            "train_input.shuffle_seed": self.seed(),
            "train_input.drop_last": self.section.drop_last,
            "train_input.files": self.hashes(),
        }

    def hashes(self) -> list[str]:
        """sha256 of the files by their manifests; files of another program have no manifest of this form."""
        result = []
        for manifest in sorted({path.parent / MANIFEST for path in self.files}):
            content = read_json(manifest, "create the files again") if manifest.is_file() else {}
            files = content.get("files", []) if isinstance(content, dict) else []
            result += [file.get("sha256") for file in files if isinstance(file, dict)]
        return result


def open_data(params: Params, name: str) -> InputData:
    """Find and check the files of `train_input` or `eval_input`. Raises UserError naming the key or the file."""
    section, model = getattr(params, name), params.model
    if section is None:
        raise UserError(f"{name}: this section is missing")
    folders = section.data_dir if isinstance(section.data_dir, list) else [section.data_dir]
    files = [path for folder in folders for path in list_files(Path(folder), name)]
    if section.vocab_size not in (None, model.vocab_size):
        raise UserError(f"{name}.vocab_size: {section.vocab_size} differs from model.vocab_size {model.vocab_size}")
    counts, length = check_files(files, model.vocab_size, model.max_position_embeddings)
    if section.max_sequence_length not in (None, length):
        raise UserError(
            f"{name}.max_sequence_length: {section.max_sequence_length}, but the rows of {files[0]} have {length} tokens"
        )
    data = InputData(section, files, counts, length)
    if name == "train_input" and not data.steps(1):
        raise UserError(f"{name}.batch_size: {section.batch_size} is more than the {data.rows} rows")
    return data


def list_files(folder: Path, name: str) -> list[Path]:
    files = sorted(folder.glob("*.h5"))
    if not files:
        raise UserError(f"{name}.data_dir: {folder}: contains no .h5 files; run python gptj/create_hdf5.py")
    if (folder / UNFINISHED).exists():
        raise UserError(f"{name}.data_dir: {folder}: unfinished; run create_hdf5.py with --resume_from_checkpoint")
    return files


def check_files(files: list[Path], vocab_size: int, max_length: int) -> tuple[list[int], int]:
    """Rows of every file, and their common length. Reads all files once.

    Raises UserError naming the file: not HDF5, truncated, without `data` or `n_examples`, of another shape, type or
    length than the first, longer than `max_length`, or with ids outside the vocabulary.
    """
    counts, length = [], None
    advice = "create it again: python gptj/create_hdf5.py --overwrite"
    for path in files:
        try:
            with h5py.File(path, "r") as file:
                if problem := _find_problem(file):
                    raise UserError(f"{path}: {problem}; {advice}")
                data = file["data"]
                if length not in (None, data.shape[2]):
                    raise UserError(
                        f"{path}: rows of {data.shape[2]} tokens, but {files[0].name} has rows of {length}; {advice}"
                    )
                length = data.shape[2]
                if length > max_length:
                    raise UserError(f"{path}: rows of {length} tokens; model.max_position_embeddings is {max_length}")
                for start in range(0, len(data), CHECKED_ROWS):
                    _check_rows(data[start : start + CHECKED_ROWS], vocab_size, path)
                counts.append(len(data))
        except OSError as error:
            raise UserError(f"{path}: damaged, or not an HDF5 file; {advice}") from error
    return counts, length


def _find_problem(file) -> str | None:
    data, examples = file.get("data"), file.attrs.get("n_examples")
    if not isinstance(data, h5py.Dataset):
        return "has no dataset `data`"
    if examples is None:
        return "has no attribute n_examples"
    if data.dtype != np.int32 or data.ndim != 3 or data.shape[1] != 3:
        return f"data is {data.dtype} {data.shape}, not int32 (rows, 3, length)"
    if len(data) != examples:
        return f"{len(data)} rows, but n_examples says {examples}"
    return None


def _check_rows(rows: np.ndarray, vocab_size: int, path: Path) -> None:
    ids = rows[:, ::2]
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f"{path}: token id {wrong}; model.vocab_size is {vocab_size}")
    if not np.isin(rows[:, 1], (0, 1)).all():
        raise UserError(f"{path}: the loss mask has values other than 0 and 1")
