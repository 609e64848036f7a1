"""How a training run fits the machine it is on: ranks, arithmetic, micro-batches, memory."""

import os
from dataclasses import dataclass

import torch

from utils import arithmetic
from utils.io import UserError

MICRO_BATCH_TOKENS = 4096  # of one forward pass: Llama 3 8B's fp32 logits for it are 2.1 GB


@dataclass(frozen=True)
class Settings:
    """What decides the result of a run, besides data and model, and how it is run."""

    lr: float
    bs: int  # blocks per optimizer step, over all GPUs
    wd: float
    warmup: float  # share of the steps
    seed: int
    block_size: int
    save_steps: int
    keep_checkpoints: int
    precision: str  # bf16 or fp32
    micro_batch: int | None = None  # blocks per forward pass and GPU
    gradient_checkpointing: bool = False
    run_eval: bool = False
    report_to: str = "none"


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def choose_precision(asked: str) -> str:
    """bf16 autocast over fp32 weights where the chip multiplies bf16 fast, fp32 elsewhere.

    On a CPU without AMX bf16 is the slower one: 140 against 210 tokens/s (SmolLM2-135M, 2 x 256,
    Xeon with AVX512-BF16, two cores; LOG.md, 2026-11-22).
    """
    if asked != "auto":
        return asked
    fast = torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if fast else "fp32"


def choose_micro_batch(settings: Settings) -> int:
    """Blocks per forward pass: the largest divisor of the rank's share that MICRO_BATCH_TOKENS allow."""
    if world_size() == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"one process sees {torch.cuda.device_count()} GPUs; start it by scripts/train.sh, "
            "or set CUDA_VISIBLE_DEVICES to one of them"
        )
    if settings.bs % world_size():
        raise UserError(f"--bs {settings.bs} does not divide by {world_size()} processes")
    share = settings.bs // world_size()
    if settings.micro_batch and share % settings.micro_batch:
        raise UserError(
            f"--bs {settings.bs} does not divide by {world_size()} processes of --micro_batch {settings.micro_batch}"
        )
    most = max(1, MICRO_BATCH_TOKENS // settings.block_size)
    return settings.micro_batch or max(
        n for n in range(1, share + 1) if share % n == 0 and n <= most
    )


def check_memory(model, settings: Settings) -> str:
    """What training needs, in words. Raises UserError where a GPU has less, naming what would fit."""
    shape, bf16 = arithmetic.shape_of(model), settings.precision == "bf16"
    micro_batch = choose_micro_batch(settings)

    def need(micro: int, recompute: bool) -> dict[str, float]:
        return arithmetic.memory_bytes(
            shape, settings.block_size, micro, world_size(), recompute, bf16
        )

    parts = need(micro_batch, settings.gradient_checkpointing)
    words = arithmetic.in_words(parts)
    if not torch.cuda.is_available():
        return words
    there = torch.cuda.get_device_properties(0).total_memory
    if sum(parts.values()) > there:
        smaller = [
            ("--gradient_checkpointing", need(micro_batch, True)),
            ("--gradient_checkpointing --micro_batch 1", need(1, True)),
        ]
        fits = [flags for flags, parts in smaller if sum(parts.values()) <= there]
        advice = f"it fits with {fits[0]}" if fits else "it fits on more GPUs alone"
        raise UserError(f"training {words}; this GPU has {there / arithmetic.GIB:.0f}; {advice}")
    return f"{words}; this GPU has {there / arithmetic.GIB:.0f}"
