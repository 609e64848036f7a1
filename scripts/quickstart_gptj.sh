#!/usr/bin/env bash
# GPT-J or GPT-NeoX by configuration file, on a CPU in a minute and a half: clean and split the example news, write HDF5
# files, convert a tiny model with random weights, train, resume, evaluate, and convert it back. The last line is JSON:
# perplexity_before and perplexity_after on held-out news, and seconds.
#
#   bash scripts/quickstart_gptj.sh
#   bash scripts/quickstart_gptj.sh --model gpt-neox
#
# All files lie in $SCP_HOME/gptj_example (default: the repository), which is created anew each time.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case " $* " in *" -h "* | *" --help "*)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$root/scripts/quickstart_gptj.sh"; exit ;;
esac
case "$*" in
    "" | "--model gptj") model=gptj name=gptj ;;
    "--model gpt-neox") model=gpt-neox name=neox ;;
    *) echo "error: $*: give --model gptj or --model gpt-neox" >&2; exit 2 ;;
esac
bash "$root/scripts/setup.sh"
source "$root/scripts/cpu_env.sh"
export SCP_HOME="${SCP_HOME:-$root}" CUDA_VISIBLE_DEVICES=""
python="$root/.venv/bin/python"
work="$SCP_HOME/gptj_example"
tokenizer=ckpts/SmolLM2-135M-Instruct
step() { printf '\n== %s\n' "$*"; }
started=$(date +%s)
rm -rf "$work"
mkdir -p "$work"
cd "$SCP_HOME"

step "1. Clean and split the news"
"$python" "$root/gptj/trc2.py" clean "$root/data/example/news.txt" "$work"
"$python" "$root/gptj/trc2.py" split --input_file "$work/news.txt.clean" --out_dir "$work" --by_article --buffer_len 100

step "2. HDF5 files"
[ -d $tokenizer ] || "$python" "$root/scripts/example_model.py"
for part in train val; do
    "$python" "$root/gptj/create_hdf5.py" --input_dir "$work" --metadata_files "$work/${part}_meta.txt" \
        --output_dir "$work/hdf5/$part" --tokenizer $tokenizer --max_seq_length 128
done

step "3. A tiny model with random weights, converted to .mdl"
params="$root/gptj/configs/params_${name}_tiny.yaml"
convert() { "$python" "$root/gptj/convert_checkpoint.py" convert "$@" --model $model --check; }
"$python" "$root/scripts/example_gptj.py" "$params" "$work/hf"
convert "$work/hf/model.safetensors" --src-fmt hf --tgt-fmt cs-1.8 --config "$work/hf/config.json" --output-dir "$work/cs"

step "4. Evaluate, train, resume, evaluate"
run() { "$python" "$root/gptj/run.py" CPU --params "$params" --model_dir "$work/model" "$@"; }
field() { "$python" -c 'import json, sys; print(json.loads(sys.argv[1])[sys.argv[2]])' "$@"; }
initial="$work/cs/model_to_cs-1.8.mdl"
before=$(run --mode eval --checkpoint_path "$initial" | tee -a /dev/stderr | tail -n 1)
run --mode train --checkpoint_path "$initial" --is_pretrained_checkpoint --max_steps 30
run --mode train --max_steps 60
after=$(run --mode eval | tee -a /dev/stderr | tail -n 1)

step "5. The trained model as a Hugging Face folder"
convert "$(field "$after" checkpoint)" --src-fmt cs-1.8 --tgt-fmt hf --config "$work/model/params_eval.yaml" \
    --hf-folder "$work/exported" --tokenizer $tokenizer

printf '\n{"perplexity_before": %s, "perplexity_after": %s, "seconds": %s}\n' \
    "$(field "$before" eval/lm_perplexity)" "$(field "$after" eval/lm_perplexity)" "$(($(date +%s) - started))"
