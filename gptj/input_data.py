"""The data of `train_input` or `eval_input`: its rows, batch by batch, from HDF5 files or a loader of the user's own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Generator
from torch.utils.data import DataLoader
from transformers import default_data_collator

from gptj.hdf5 import Hdf5Files, open_files
from gptj.own_loader import OwnRows, OwnStream, StreamRows, open_own
from gptj.rows import row_order
from gptj.sections import Input, OwnInput, Params
from utils.cli import print_main
from utils.errors import UserError


@dataclass(frozen=True)
class InputData:
    """The section called `name`, and the source of its rows, which has been checked."""

    name: str
    section: Input | OwnInput
    source: Hdf5Files | OwnRows | OwnStream

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.source.length

    @property
    def num_workers(self) -> int:
        return 0 if isinstance(self.source, OwnStream) else self.section.num_workers

    def steps(self, epochs: int) -> int:
        """Batches in `epochs`; without drop_last a batch may span two epochs."""
        rows, bs = self.source.rows, self.section.batch_size
        if rows is None:
            raise UserError(f"runconfig.num_epochs: {self.section.data_processor} has no length; give max_steps")
        return epochs * (rows // bs) if self.section.drop_last else -(-epochs * rows // bs)

    def seed(self) -> int | None:
        return (self.section.shuffle_seed or 0) if self.section.shuffle else None

    def training_rows(self, steps: int):
        """A map-style dataset of the rows of `steps` batches, with `name(index)`."""
        if isinstance(self.source, OwnStream):
            return StreamRows(self.source, steps * self.section.batch_size)
        return self.source.in_order(self._order(steps))

    def evaluation_batches(self) -> Iterator[dict] | DataLoader:
        """Batches of one epoch."""
        section = self.section
        if isinstance(self.source, OwnStream):
            return map(default_data_collator, self.source.batches())
        order = self._order(self.steps(1))[: self.source.rows]
        if not len(order):
            raise UserError(
                f"{self.name}.batch_size: {section.batch_size} for {self.source.rows} rows; set drop_last: false"
            )
        if len(order) < self.source.rows:
            rest = self.source.rows - len(order)
            print_main(f"{rest} rows, less than a batch, are left out ({self.name}.drop_last)")
        return DataLoader(
            self.source.in_order(order),
            section.batch_size,
            collate_fn=default_data_collator,
            generator=Generator(),  # else it draws from the global one, and dropout in training changes
            num_workers=section.num_workers,
            prefetch_factor=section.prefetch_factor if section.num_workers else None,
            persistent_workers=section.persistent_workers and section.num_workers > 0,
        )

    def _order(self, steps: int):
        return row_order(self.source.rows, self.section.batch_size, steps, self.section.drop_last, self.seed())

    def identity(self) -> dict:
        """The settings and files that decide which rows a step reads."""
        return self.source.identity() | {
            "train_input.batch_size": self.section.batch_size,
            "train_input.shuffle": self.section.shuffle,
            "train_input.shuffle_seed": self.seed(),
            "train_input.drop_last": self.section.drop_last,
        }


@contextmanager
def without_worker_traceback() -> Iterator[None]:
    """Take a UserError out of the traceback that a worker of a DataLoader puts around it."""
    try:
        yield
    except UserError as error:
        raise UserError(re.split(r"UserErrors?: ", str(error))[-1]) from error


def open_data(params: Params, name: str) -> InputData:
    """Open and check `train_input` or `eval_input`. Raises UserError naming the key, the file or the batch."""
    section, model = getattr(params, name), params.model
    if section is None:
        raise UserError(f"{name}: this section is missing")
    if section.vocab_size not in (None, model.vocab_size):
        raise UserError(f"{name}.vocab_size: {section.vocab_size} differs from model.vocab_size {model.vocab_size}")
    open_source = open_own if isinstance(section, OwnInput) else open_files
    source = open_source(section, name, model.vocab_size, model.max_position_embeddings)
    if name == "train_input" and source.rows is not None and not InputData(name, section, source).steps(1):
        raise UserError(f"{name}.batch_size: {section.batch_size} is more than the {source.rows} rows")
    return InputData(name, section, source)
