"""Precision of the arithmetic: bf16 on a GPU; on a CPU the faster one, measured on products of the model's own shapes.

No flag of a CPU tells which is faster: with AVX512-BF16, an Intel Xeon trains SmolLM2-135M faster in fp32 (LOG.md,
2026-11-22), and an AMD EPYC is reported to train it faster in bf16.
"""

import time
from pathlib import Path

import torch
from torch.nn.functional import linear

from utils.cli import print_main
from utils.device import world_size
from utils.io import read_json

SHORT = (16, 1024, 2048)  # tokens and widths of a first product, at most; shows emulated bf16 in 0.1 s
LONG = (256, 2048, 8192)
EMULATED = 3.0  # bf16 that takes this many times as long as fp32 is emulated (8 to 50 times were seen): no LONG product
ROUNDS = 3  # at least; more until SECONDS have passed
SECONDS = 0.5
MIN_GAIN = 1.25  # bf16 is chosen if it is faster by this factor; below it, times of two runs may differ as much
MIN_HIDDEN = 512  # narrower models always use fp32: their products are too short to be timed reliably


def choose_precision(requested: str, config, folder: Path | None = None) -> str:
    """Resolve `auto` for a model with the configuration `config`. A run that `folder` holds keeps its precision, also
    on another machine, since its losses would change in the middle."""
    if requested != "auto":
        return requested
    here = "bf16" if torch.cuda.is_available() else faster_precision(config)
    begun = recorded_precision(folder) if folder else None
    if begun and begun != here:
        print_main(f"precision {begun}, as this run began; {here} is faster on this machine")
    return begun or here


def recorded_precision(folder: Path) -> str | None:
    """The precision of the run in a folder; None without a run."""
    record = folder / "run.json"
    return read_json(record, "delete the folder")["settings"]["precision"] if record.is_file() else None


def faster_precision(config) -> str:
    """bf16 or fp32, whichever multiplies faster on this CPU; all ranks use the choice of rank 0."""
    config = config.get_text_config(decoder=True)
    if config.hidden_size < MIN_HIDDEN:
        return "fp32"
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    times = time_products(config.hidden_size, max(width) if isinstance(width, list) else width)
    choice = "bf16" if times["fp32"] >= MIN_GAIN * times["bf16"] else "fp32"
    if world_size() == 1:
        return choice
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=True)
    return broadcast_object_list([choice])[0]


def time_products(hidden: int, intermediate: int) -> dict[str, float]:
    """Shortest seconds of a forward and backward pass through two linear layers with fp32 weights, hidden to
    intermediate and back, with and without bf16 autocast; the two alternate."""
    times = _time_rounds((SHORT[0], min(hidden, SHORT[1]), min(intermediate, SHORT[2])))
    if times["bf16"] > EMULATED * times["fp32"]:
        return times
    return _time_rounds((LONG[0], min(hidden, LONG[1]), min(intermediate, LONG[2])))


def _time_rounds(shape: tuple[int, int, int]) -> dict[str, float]:
    tokens, hidden, intermediate = shape
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, hidden), (intermediate, hidden), (hidden, intermediate)]
    x, up, down = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    while len(seconds["bf16"]) <= ROUNDS or sum(map(sum, seconds.values())) < SECONDS:
        for precision, measured in seconds.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                linear(linear(x, up), down).float().sum().backward()
            measured.append(time.perf_counter() - start)
    return {precision: min(measured[1:]) for precision, measured in seconds.items()}  # the first is the warm-up
