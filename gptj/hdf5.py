"""HDF5 training files: a dataset over their rows, and checks of the files.

A file has a dataset `data` (rows, 3, length) int32 (input ids, loss mask, labels already shifted) and an attribute
`n_examples`. gptj/create_hdf5.py writes them, with a manifest.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from gptj.rows import training_row
from gptj.sections import Input
from utils.errors import UserError
from utils.io import read_json

MANIFEST = "data_params.json"  # settings, counts, and the sha256 of every file
UNFINISHED = ".settings.json"  # in a folder that create_hdf5.py has not finished
CHECKED_ROWS = 4096  # rows in memory at once


class Hdf5Rows:
    """A map-style dataset of rows in a given order; items as rows.training_row makes them. Files are opened in the
    process that reads them.

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
        return training_row(*self.row(index))

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


@dataclass(frozen=True)
class Hdf5Files:
    """The checked files of one input section. Each file has `counts` rows of `length` tokens."""

    files: list[Path]
    counts: list[int]
    length: int

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def in_order(self, order: np.ndarray) -> Hdf5Rows:
        return Hdf5Rows(self.files, self.counts, order)

    def identity(self) -> dict:
        """Names, row counts and hashes of the files, which determine the rows. The hashes come from the manifests; files
        written by another program have none."""
        hashes = []
        for manifest in sorted({path.parent / MANIFEST for path in self.files}):
            content = read_json(manifest, "create the files again") if manifest.is_file() else {}
            files = content.get("files", []) if isinstance(content, dict) else []
            hashes += [file.get("sha256") for file in files if isinstance(file, dict)]
        names = [f"{path.name}:{count}" for path, count in zip(self.files, self.counts, strict=True)]
        return {"train_input.data_dir": names, "train_input.files": hashes}


def open_files(section: Input, name: str, vocab_size: int, max_length: int) -> Hdf5Files:
    """Find and check the files of the section called `name`. Raises UserError naming the key or the file."""
    folders = section.data_dir if isinstance(section.data_dir, list) else [section.data_dir]
    if not folders:
        raise UserError(f"{name}.data_dir: names no folder")
    files = [path for folder in folders for path in list_files(Path(folder), name)]
    counts, length = check_files(files, vocab_size, max_length)
    if section.max_sequence_length not in (None, length):
        raise UserError(
            f"{name}.max_sequence_length: {section.max_sequence_length}, but the rows of {files[0]} have {length} tokens"
        )
    return Hdf5Files(files, counts, length)


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
    is_link = isinstance(file.get("data", getlink=True), h5py.ExternalLink | h5py.SoftLink)
    if is_link or (isinstance(data, h5py.Dataset) and (data.external or data.is_virtual)):
        return "its data lies in another file; only rows in the file itself are read"
    if not isinstance(data, h5py.Dataset):
        return "has no dataset `data`"
    if examples is None or np.ndim(examples):
        return "has no attribute n_examples, a number"
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
