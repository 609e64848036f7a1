"""Write a GPT-J or GPT-NeoX with random weights as a Hugging Face folder; its shape is the `model` section of a YAML file.

python scripts/example_gptj.py gptj/configs/params_gptj_tiny.yaml /tmp/gptj
"""

from pathlib import Path

from utils.cli import make_parser, print_result, silence_transformers
from utils.errors import run


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("params", type=Path, help="the YAML file")
    parser.add_argument("folder", type=Path, help="output folder")
    args = parser.parse_args()

    # Heavy imports, after parsing.
    import torch

    from gptj.model import make_model
    from gptj.params import load

    silence_transformers()
    params, _ = load(args.params)
    torch.manual_seed(params.runconfig.seed)
    make_model(params.model.model_dump()).save_pretrained(args.folder)
    print_result({"output": str(args.folder)}, f"{args.folder}: random weights")


if __name__ == "__main__":
    run(main)
