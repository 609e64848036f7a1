"""Ranks of a distributed run, and the device."""

import os


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True on rank 0, the only rank that prints and writes run records. A RANK without a WORLD_SIZE is of another
    program."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") in ("0", "")


def leave_process_group() -> None:
    """Shut down the communication of a distributed run; without it, its threads can abort the process at exit."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def device_type() -> str:
    """`cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
