"""What calls cost: tokens, and dollars for them."""

import re
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.io import read_json


@dataclass(frozen=True)
class Usage:
    """Tokens; `cached` is the part of `prompt` that the server found in its prefix cache."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt - other.prompt, self.cached - other.cached, self.completion - other.completion)

    @property
    def total(self) -> int:
        return self.prompt + self.completion


ZERO = Usage()


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens; `batch` is the factor for calls of the Batch API."""

    prompt: float
    cached: float
    completion: float
    batch: float = 1.0

    def usd(self, usage: Usage) -> float:
        fresh = usage.prompt - usage.cached
        return (fresh * self.prompt + usage.cached * self.cached + usage.completion * self.completion) / 1e6


def find_price(path: Path, model: str) -> Price | None:
    """The model's price in a price file, None where it has none. A name stands for its dated
    versions too. Raises UserError for a file that is not of this form."""
    prices = read_json(path, "it ships with the repository")
    undated = re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", model)
    found = prices.get(model, prices.get(undated)) if isinstance(prices, dict) else None
    if found is None:
        return None
    try:
        price = Price(**{name: float(value) for name, value in found.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: {model!r} needs prompt, cached, completion and batch, each a number") from error
    return price
