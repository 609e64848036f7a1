"""TODO utils.device."""

import os

import torch


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(asked: str) -> str:
    """bf16 autocast over fp32 weights where the chip multiplies bf16 fast, fp32 elsewhere.

    On a CPU without AMX bf16 is the slower one: 140 against 210 tokens/s (SmolLM2-135M, 2 x 256,
    Xeon with AVX512-BF16, two cores; LOG.md, 2026-11-22).
    """
    if asked != "auto":
        return asked
    fast = torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if fast else "fp32"
