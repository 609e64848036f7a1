"""train.py with FSDP2 on CPU ranks; each rank prints its share of the parameters.

accelerate shards on GPUs only, so it is told that these are GPUs; the rest is the code that runs on GPUs.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.distributed
import transformers.trainer
from accelerate import Accelerator, DistributedType, PartialState

import train
from training import hardware, trainer
from utils.errors import run


def sharding_accelerator(**options):
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Accelerator(**options)


def save_and_print_share(running, folder, save=trainer.save):
    state = running.model.state_dict().values()  # sharded again; after an evaluation the last layers are not
    local = sum(tensor.to_local().numel() for tensor in state)
    print(f"rank {os.environ['RANK']} holds {local} of {sum(tensor.numel() for tensor in state)}")
    save(running, folder)


if __name__ == "__main__":
    transformers.trainer.Accelerator = sharding_accelerator
    hardware.choose_sharding = lambda sharding, lora_rank: sharding
    trainer.save = save_and_print_share
    run(train.main)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
