"""Data loaders of the user's own: `data_processor: my_module.MyProcessor`, or `path/to/file.py:MyProcessor`.

It is a class or function that is called with the section's keys, and gives a map-style or iterable dataset, or an
object with `create_dataloader()`. Items are dictionaries of int32 tensors or arrays, padded with 0, of one row
(max_sequence_length,) or one batch (batch_size, max_sequence_length):

input_ids: tokens
attention_mask: 1 for labels that count in the loss, else 0
labels: the token after each input token

The module is imported because the user named it in the configuration; no data file names one.
"""

import importlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset

from gptj.features import FEATURES, Checked
from gptj.sections import HDF5_PROCESSOR, OwnInput
from utils.cli import print_main
from utils.errors import UserError, first_line

END = object()  # after the last item
RUN_KEYS = {"num_workers", "prefetch_factor", "persistent_workers"}  # without influence on the rows


class name_errors:  # noqa: N801  a context manager
    """Turns whatever the user's code raises into a UserError that names the place. It is no code of ours, so that
    nothing is known of its exceptions."""

    def __init__(self, where: str):
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception | SystemExit) and not isinstance(error, UserError):
            raise UserError(f"{self.where}: raised {kind.__name__}: {first_line(error)}") from error


@dataclass(frozen=True)
class OwnRows:
    """A map-style dataset of `items` items; `per_item` rows in each, and fewer in the last one."""

    dataset: object
    checked: Checked
    settings: dict
    items: int
    rows: int
    per_item: int

    @property
    def length(self) -> int:
        return self.checked.length

    def in_order(self, order: np.ndarray) -> "OrderedRows":
        return OrderedRows(self, order)

    def identity(self) -> dict:
        return self.settings | {"train_input.rows": self.rows}


class OrderedRows:
    """Rows of a map-style dataset in a given order, as a map-style dataset."""

    def __init__(self, source: OwnRows, order: np.ndarray):
        self.source, self.order = source, order
        self.item: tuple[int, list[dict]] = (-1, [])  # number and rows of the item read last

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        source, (number, row) = self.source, divmod(int(self.order[index]), self.source.per_item)
        if self.item[0] != number:
            batch = index // source.checked.bs + 1
            with name_errors(f"{source.checked.where}: batch {batch}, item {number}"):
                item = source.dataset[number]
            self.item = number, source.checked.rows(item, batch, number == source.items - 1)
        return self.item[1][row]

    def name(self, index: int) -> str:
        return f"row {self.order[index]} of {self.source.checked.where}"


@dataclass(frozen=True)
class OwnStream:
    """An iterable, made anew for every epoch, and read from front to back."""

    make: Callable[[], Iterable]
    checked: Checked
    settings: dict
    seed: int
    drop_last: bool
    rows: None = None

    @property
    def length(self) -> int:
        return self.checked.length

    def identity(self) -> dict:
        return self.settings

    def batches(self, epoch: int = 0, first_batch: int = 1) -> Iterator[list[dict]]:
        """The batches of an epoch, which are counted from `first_batch` in errors."""
        checked, batch, smaller = self.checked, first_batch, False
        waiting: list[dict] = []
        items = read_items(self.make, self.seed + epoch, lambda: f"{checked.where}: batch {batch}")
        for item in items:
            if smaller:
                raise UserError(f"{checked.where}: batch {batch}: follows one of less than {checked.bs} rows")
            rows = checked.rows(item, batch)
            smaller = checked.batched and len(rows) < checked.bs
            waiting += rows
            while len(waiting) >= checked.bs:
                yield waiting[: checked.bs]
                del waiting[: checked.bs]
                batch += 1
        if waiting and self.drop_last and epoch == 0:
            print_main(f"{checked.where}: {len(waiting)} rows, less than a batch, are left out (drop_last)")
        elif waiting and not self.drop_last:
            yield waiting


def read_items(make: Callable[[], Iterable], seed: int, where: Callable[[], str]) -> Iterator[object]:
    """The items of a new iterable. A DataLoader that shuffles draws its order from torch's global generator when its
    first item is read: it gets a seeded one, and training keeps its own."""
    with torch.random.fork_rng(devices=[]), name_errors(where()):
        torch.manual_seed(seed)
        items = iter(make())
        item = next(items, END)
    while item is not END:
        yield item
        with name_errors(where()):
            item = next(items, END)


class StreamRows:
    """The first `count` rows of an iterable's epochs, as a map-style dataset that is read from front to back."""

    def __init__(self, source: OwnStream, count: int):
        self.source, self.count = source, count
        self.position, self.rows = 0, self._rows()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if index < self.position:
            self.position, self.rows = 0, self._rows()
        if index - self.position >= self.source.checked.bs:
            passed = f"{index - self.position} rows are read and passed over, since an iterable cannot be entered later"
            print_main(f"{self.source.checked.where}: {passed}")
        row = next(itertools.islice(self.rows, index - self.position, None))
        self.position = index + 1
        return row

    def name(self, index: int) -> str:
        return f"row {index} of {self.source.checked.where}"

    def _rows(self) -> Iterator[dict]:
        """The rows of all epochs. An incomplete batch at the end of an epoch is completed by the next one."""
        count = 0
        for epoch in itertools.count():
            before = count
            for batch in self.source.batches(epoch, count // self.source.checked.bs + 1):
                yield from batch
                count += len(batch)
            if count == before:
                raise UserError(
                    f"{self.source.checked.where}: an epoch without a batch of {self.source.checked.bs} rows"
                )


def open_own(section: OwnInput, name: str, vocab_size: int, max_length: int) -> OwnRows | OwnStream:
    """Call the user's loader, and check its first batch. Raises UserError naming the key or the batch."""
    where = f"{name}.data_processor {section.data_processor}"
    loader = find_loader(section.data_processor, f"{name}.data_processor")
    keys = section.model_dump(exclude_none=True) | {"vocab_size": vocab_size}
    settings = {f"{name}.{key}": value for key, value in keys.items() if key not in RUN_KEYS}
    settings = json.loads(json.dumps(settings, default=str))  # a YAML file can hold dates
    dataset = make_dataset(loader, keys, where)
    is_map = (
        hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    )
    if not is_map and not hasattr(dataset, "__iter__"):
        raise UserError(f"{where}: gives a {type(dataset).__name__}, which is neither a dataset nor an iterable")
    if is_map:
        return _open_rows(dataset, section, where, settings, (vocab_size, max_length))
    seed = section.shuffle_seed or 0

    def make() -> Iterable:
        return make_dataset(loader, keys, where)

    first, again = (next(read_items(make, seed, lambda: f"{where}: batch 1"), END) for _ in range(2))
    if first is END:
        raise UserError(f"{where}: gives no rows")
    source = OwnStream(
        make, check_form(first, section, where, vocab_size, max_length), settings, seed, section.drop_last
    )
    if not next(source.batches(), None):
        raise UserError(f"{where}: gives less than a batch of {section.batch_size} rows")
    source.checked.rows(first, 1)
    if again is END or not all(np.array_equal(first[key], again[key]) for key in FEATURES):
        raise UserError(f"{where}: gives other rows when it is called again; every epoch and every resumption calls it")
    return source


def _open_rows(dataset, section: OwnInput, where: str, settings: dict, limits: tuple[int, int]) -> OwnRows:
    with name_errors(f"{where}: batch 1"):
        items = len(dataset)
        first = dataset[0] if items else END
    if first is END:
        raise UserError(f"{where}: gives no rows")
    checked = check_form(first, section, where, *limits)
    per_item = len(checked.rows(first, 1, items == 1))
    with name_errors(f"{where}: item {items - 1}"):
        last = dataset[items - 1]
    rows_of_last = len(checked.rows(last, -(-items * per_item // checked.bs)))
    source = OwnRows(dataset, checked, settings, items, (items - 1) * per_item + rows_of_last, per_item)
    first_batch = source.in_order(np.arange(min(checked.bs, source.rows)))
    for index in range(len(first_batch)):
        first_batch[index]
    return source


def check_form(first: object, section: OwnInput, where: str, vocab_size: int, max_length: int) -> Checked:
    """The required form of every item: the length is max_sequence_length, or that of the first row; the number of
    dimensions is that of the first item."""
    ids = first.get("input_ids") if isinstance(first, Mapping) else None
    shape = tuple(ids.shape) if isinstance(ids, torch.Tensor | np.ndarray) else ()
    length = section.max_sequence_length or (shape[-1] if shape else 1) or 1
    if length > max_length:
        raise UserError(f"{where}: rows of {length} tokens; model.max_position_embeddings is {max_length}")
    return Checked(where, section.batch_size, length, len(shape) == 2, vocab_size)


def make_dataset(loader: Callable, keys: dict, where: str):
    """Call the loader with the section's keys; returns the dataset, or the result of its `create_dataloader()`."""
    with name_errors(where):
        dataset = loader(dict(keys))
        return dataset.create_dataloader() if hasattr(dataset, "create_dataloader") else dataset


def find_loader(name: str, key: str) -> Callable:
    """The class or function called `module.Name` or `path/to/file.py:Name`."""
    path, _, attribute = name.rpartition(":" if ":" in name else ".")
    if not path or not attribute:
        raise UserError(f"{key}: {name}: give {HDF5_PROCESSOR}, module.Name, or path/to/file.py:Name")
    if ":" in name and not Path(path).is_file():
        raise UserError(f"{key}: {path}: no such file")
    with name_errors(f"{key}: {path}"):
        if ":" in name:
            spec = importlib.util.spec_from_file_location(f"loader_{Path(path).stem}", path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickle look it up
            spec.loader.exec_module(module)
        else:
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))
            module = importlib.import_module(path)
    loader = getattr(module, attribute, None)
    if not callable(loader):
        raise UserError(f"{key}: {path} has no class or function {attribute}")
    return loader
