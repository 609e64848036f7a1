"""TODO gptj.hdf5."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.io import read_json
from utils.token_file import IGNORE_INDEX


class Hdf5Rows:
    """A map-style dataset of the rows of HDF5 files (gptj/create_hdf5.py writes them) in a given order:
    item i is {"input_ids", "labels", "shift_labels"}, (length,) each; the labels are shifted already
    and IGNORED where the mask is 0. Files are opened by the process that reads.

    files: in the order of their rows; counts: rows of each; order: (items,) row numbers.
    """

    def __init__(self, files: list[Path], counts: list[int], order: np.ndarray):
        self.files, self.begins, self.order = files, np.cumsum([0, *counts]), order
        self.opened: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self.order)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"opened": {}}  # an open file cannot go to a worker

    def __getitem__(self, index: int) -> dict:
        import torch

        ids, mask, labels = torch.from_numpy(self.row(index).astype(np.int64))
        labels = labels.where(mask > 0, IGNORE_INDEX)
        return {"input_ids": ids, "labels": labels, "shift_labels": labels}

    def row(self, index: int) -> np.ndarray:
        """(3, length) int32: input ids, loss mask, labels."""
        import h5py

        file, row = self._place(index)
        if file not in self.opened:
            self.opened[file] = h5py.File(self.files[file], "r")["data"]
        return self.opened[file][row]

    def name(self, index: int) -> str:
        file, row = self._place(index)
        return f"{self.files[file].name} row {row}"

    def _place(self, index: int) -> tuple[int, int]:
        row = int(self.order[index])
        file = int(np.searchsorted(self.begins, row, "right")) - 1
        return file, row - int(self.begins[file])


def order_of_rows(rows: int, bs: int, steps: int, drop_last: bool, seed: int | None) -> np.ndarray:
    """The rows of `steps` batches of `bs`: epoch after epoch, each in an order of its own (`seed`
    None: in file order). `drop_last` leaves out what is less than a batch at an epoch's end; else
    the next epoch begins in the middle of a batch."""
    kept = rows // bs * bs if drop_last else rows
    if not kept or not steps:
        return np.empty(0, np.int64)
    epochs = -(-steps * bs // kept)
    orders = [
        np.arange(rows) if seed is None else np.random.default_rng([seed, epoch]).permutation(rows)
        for epoch in range(epochs)
    ]
    return np.concatenate([order[:kept] for order in orders])[: steps * bs]


def check_hdf5(files: list[Path], vocabulary: int, longest: int) -> tuple[list[int], int]:
    """The rows of every file, and their length. Reads all of it once.

    Raises UserError, which names the file, for what is no HDF5 file, cut, without `data` or
    `n_examples`, of another shape, type or length than the first, or with ids outside the vocabulary.
    """
    import h5py

    counts, length = [], None
    made = "make it again: python gptj/create_hdf5.py --overwrite"
    for path in files:
        try:
            with h5py.File(path, "r") as file:
                data, said = file.get("data"), file.attrs.get("n_examples")
                if not isinstance(data, h5py.Dataset):
                    raise UserError(f"{path}: has no dataset `data`; {made}")
                if said is None:
                    raise UserError(f"{path}: has no attribute n_examples; {made}")
                if data.dtype != np.int32 or data.ndim != 3 or data.shape[1] != 3:
                    raise UserError(
                        f"{path}: data is {data.dtype} {data.shape}, where int32 (n, 3, length) is wanted; {made}"
                    )
                if len(data) != said:
                    raise UserError(f"{path}: {len(data)} rows, and n_examples says {said}; {made}")
                if length not in (None, data.shape[2]):
                    raise UserError(
                        f"{path}: rows of {data.shape[2]} tokens, and {files[0].name} has rows of {length}; {made}"
                    )
                length = data.shape[2]
                if length > longest:
                    raise UserError(f"{path}: rows of {length} tokens, and model.max_position_embeddings is {longest}")
                for begin in range(0, len(data), 4096):
                    _check_rows(data[begin : begin + 4096], vocabulary, path)
                counts.append(len(data))
        except OSError as error:
            raise UserError(f"{path}: damaged, or no HDF5 file; {made}") from error
    return counts, length


def _check_rows(rows: np.ndarray, vocabulary: int, path: Path) -> None:
    ids = rows[:, ::2]
    if ids.min() < 0 or ids.max() >= vocabulary:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f"{path}: token id {wrong}, and model.vocab_size is {vocabulary}")
    if not np.isin(rows[:, 1], (0, 1)).all():
        raise UserError(f"{path}: a loss mask that is neither 0 nor 1")


@dataclass(frozen=True)
class Data:
    """The checked files of one input section."""

    section: dict
    files: list[Path]
    counts: list[int]
    length: int

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def steps(self, epochs: int) -> int:
        """Without drop_last an epoch may end within a batch, and the next one begin there."""
        bs = self.section["batch_size"]
        if self.section["drop_last"]:
            return epochs * (self.rows // bs)
        return -(-epochs * self.rows // bs)

    def seed(self) -> int | None:
        return (self.section["shuffle_seed"] or 0) if self.section["shuffle"] else None

    def identity(self) -> dict:
        """What decides which rows a step sees."""
        named = [f"{path.name}:{count}" for path, count in zip(self.files, self.counts, strict=True)]
        return {
            "train_input.data_dir": named,
            "train_input.batch_size": self.section["batch_size"],
            "train_input.shuffle": self.section["shuffle"],
            "train_input.shuffle_seed": self.seed(),
            "train_input.drop_last": self.section["drop_last"],
            "train_input.files": self.hashes(),
        }

    def hashes(self) -> list[str]:
        """Of the files, as their manifests have them; nothing for folders without one of ours."""
        found = []
        for manifest in sorted({path.parent / "data_params.json" for path in self.files}):
            content = read_json(manifest, "make the files again") if manifest.is_file() else {}
            files = content.get("files", []) if isinstance(content, dict) else []
            found += [file.get("sha256") for file in files if isinstance(file, dict)]
        return found


def open_data(params: dict, name: str) -> Data:
    if name not in params:
        raise UserError(f"{name}: this section is missing")
    section, model = params[name], params["model"]
    folders = section["data_dir"] if isinstance(section["data_dir"], list) else [section["data_dir"]]
    files = []
    for folder in map(Path, folders):
        found = sorted(folder.glob("*.h5"))
        if not found:
            raise UserError(f"{name}.data_dir: {folder}: no .h5 files in it; run: python gptj/create_hdf5.py")
        if (folder / ".settings.json").exists():
            raise UserError(
                f"{name}.data_dir: {folder}: unfinished; run gptj/create_hdf5.py again with --resume_from_checkpoint"
            )
        files += found
    if section["vocab_size"] not in (None, model["vocab_size"]):
        raise UserError(f"{name}.vocab_size: {section['vocab_size']}, and model.vocab_size is {model['vocab_size']}")
    counts, length = check_hdf5(files, model["vocab_size"], model["max_position_embeddings"])
    if section["max_sequence_length"] not in (None, length):
        raise UserError(
            f"{name}.max_sequence_length: {section['max_sequence_length']}, and the rows of {files[0]} have {length} tokens"
        )
    data = Data(section, files, counts, length)
    if name == "train_input" and not data.steps(1):
        raise UserError(f"{name}.batch_size: {section['batch_size']}, and there are {data.rows} rows")
    return data
