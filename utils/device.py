"""Ranks of a distributed run, the device, and the precision of its arithmetic."""

import os


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True on rank 0, the only rank that prints and writes run records."""
    return int(os.environ.get("RANK", "0")) == 0


def leave_process_group() -> None:
    """Shut down the communication of a distributed run; without it, its threads can abort the process at exit."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def device_type() -> str:
    """`cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(precision: str) -> str:
    """Resolve `auto`: bf16 autocast on a GPU and on a CPU with AMX, fp32 elsewhere.

    On a CPU without AMX bf16 can be slower than fp32: 140 against 210 tokens/s (SmolLM2-135M, 2 × 256 tokens,
    Xeon with AVX512-BF16, two cores; LOG.md, 2026-11-22).
    """
    import torch

    if precision != "auto":
        return precision
    fast_bf16 = torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bf16" if fast_bf16 else "fp32"
