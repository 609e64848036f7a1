#!/usr/bin/env bash
# The second front on a CPU, in three minutes: example news -> clean -> split -> HDF5 -> a tiny GPT-J from
# random weights -> convert -> train -> resume -> eval. The last line is one JSON object: held-out
# perplexity before and after.
#
#   bash scripts/quickstart_gptj.sh
#
# Everything lies in $SCP_HOME/gptj_example (default: the repository), and is made anew each time.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"
source "$root/scripts/cpu_env.sh"
export SCP_HOME="${SCP_HOME:-$root}" CUDA_VISIBLE_DEVICES=""
python="$root/.venv/bin/python"
work="$SCP_HOME/gptj_example"
step() { printf '\n== %s\n' "$*"; }
begun=$(date +%s)
rm -rf "$work"
mkdir -p "$work"
cd "$SCP_HOME"

step "1. clean and split the news"
"$python" "$root/gptj/trc2.py" clean "$root/data/example/news.txt" "$work"
"$python" "$root/gptj/trc2.py" split --input_file "$work/news.txt.clean" --out_dir "$work" --by_article --buffer_len 100

step "2. HDF5"
[ -d ckpts/SmolLM2-135M-Instruct ] || "$python" "$root/scripts/example_model.py"
for part in train val; do
    "$python" "$root/gptj/create_hdf5.py" --input_dir "$work" --metadata_files "$work/${part}_meta.txt" \
        --output_dir "$work/hdf5/$part" --tokenizer ckpts/SmolLM2-135M-Instruct --max_seq_length 128
done

step "3. a tiny GPT-J with random weights, and its conversion"
params="$root/gptj/configs/params_gptj_tiny.yaml"
"$python" "$root/scripts/example_gptj.py" "$params" "$work/hf"
"$python" "$root/gptj/convert_checkpoint.py" convert "$work/hf/model.safetensors" --model gptj \
    --src-fmt hf --tgt-fmt cs-1.8 --config "$work/hf/config.json" --output-dir "$work/cs" --check

step "4. evaluate, train, go on, evaluate"
run() { "$python" "$root/gptj/run.py" CPU --params "$params" --model_dir "$work/model" "$@"; }
run --mode eval --checkpoint_path "$work/cs/model_to_cs-1.8.mdl" | tee "$work/before.txt"
run --mode train --checkpoint_path "$work/cs/model_to_cs-1.8.mdl" --is_pretrained_checkpoint --max_steps 30
run --mode train --max_steps 60
run --mode eval --export_hf "$work/exported" | tee "$work/after.txt"

perplexity() { sed -n 's/^Metric: eval\/lm_perplexity = //p' "$1"; }
printf '\n{"perplexity_before": %s, "perplexity_after": %s, "seconds": %s}\n' \
    "$(perplexity "$work/before.txt")" "$(perplexity "$work/after.txt")" "$(($(date +%s) - begun))"
