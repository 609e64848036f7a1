"""A GPT-J with random weights, of the shape that a YAML file's `model` section describes, as an
ordinary Hugging Face folder.

    python scripts/example_gptj.py gptj/configs/params_gptj_tiny.yaml /tmp/gptj
"""

import argparse
from pathlib import Path

from utils.errors import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("params", type=Path, help="the YAML file")
    parser.add_argument("folder", type=Path, help="to be written")
    args = parser.parse_args()

    import torch
    from transformers import GPTJConfig, GPTJForCausalLM
    from transformers.utils import logging

    from gptj.formats import config_to_hf
    from gptj.params import load

    logging.disable_progress_bar()
    params, _ = load(args.params)
    torch.manual_seed(params["runconfig"]["seed"])
    GPTJForCausalLM(GPTJConfig(**config_to_hf(params["model"]))).save_pretrained(args.folder)
    print(f"{args.folder}: random weights")


if __name__ == "__main__":
    run(main)
