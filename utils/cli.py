"""TODO utils.cli."""

import argparse
import math

from transformers.utils import logging

from utils.device import is_main_process


def non_negative_int(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def silence_transformers() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def print_main(*words) -> None:
    if is_main_process():
        print(*words, flush=True)


class Typed(float):
    """A number that remembers how it was typed: run names bear `5e-06` as `5e-06`."""

    def __new__(cls, text: str) -> "Typed":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text
