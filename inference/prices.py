"""Token usage and prices of API calls."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.io import read_json


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens; `cached` is the part of `prompt` found in the server's prefix cache."""

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
    """US dollars per million tokens; `batch` multiplies the price of calls through the Batch API."""

    prompt: float
    cached: float
    completion: float
    batch: float = 1.0

    def usd(self, usage: Usage) -> float:
        uncached = usage.prompt - usage.cached
        return (uncached * self.prompt + usage.cached * self.cached + usage.completion * self.completion) / 1e6


def find_price(path: Path, model: str) -> Price | None:
    """Price of a model, or of its name without a date suffix; None if not listed. UserError for a malformed entry."""
    prices = read_json(path, "it ships with the repository")
    undated = re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", model)
    entry = prices.get(model, prices.get(undated)) if isinstance(prices, dict) else None
    if entry is None:
        return None
    try:
        price = Price(**{name: float(value) for name, value in entry.items()})
        if not all(0 <= value < math.inf for value in vars(price).values()):  # no budget would end
            raise ValueError("not a price")
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: {model!r} needs prompt, cached, completion and batch, each a number from 0 upwards"
        ) from error
    return price
