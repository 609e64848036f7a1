#!/usr/bin/env bash
# Accuracy by number of synthetic tokens: trains on nested subsets of the passages, evaluates each checkpoint and
# the base model, and writes out/scaling.json. notebooks/nb_scaling.ipynb fits the curves.
#
#   RATIOS="0.03 0.1 0.3 1" scripts/scaling.sh --lr 5e-06 --bs 16 --task_name quality -- --task quality
#   scripts/scaling.sh --lr 1e-3 --bs 2 --task_name example --model SmolLM2-135M-Instruct … -- --task example --protocol loglik
#
# Arguments before -- go to train.py, those after it to evaluation.py. Finished runs are reused.
# Default RATIOS: 0.0625 0.125 0.25 0.5 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
show_help "$@"
training=() base=meta-llama/Meta-Llama-3-8B
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case "$1" in
        --subsample_ratio*) fail "$1: the subsets are set by RATIOS; leave the option out" ;;
        --model_name) base="${2:-}" ;;
        --model_name=*) base="${1#*=}" ;;
    esac
    training+=("$1")
    shift
done
[ $# -eq 0 ] || shift
case " $* " in *" --rag "*) fail "--rag: the scaling curve is closed book; leave the option out" ;; esac
bash scripts/setup.sh
checkpoints=()
for ratio in ${RATIOS:-0.0625 0.125 0.25 0.5 1}; do
    step "$ratio of the passages"
    checkpoint=$(json_value checkpoint ./scripts/train.sh "${training[@]}" --subsample_ratio "$ratio")
    echo "evaluation of $checkpoint"
    "$python" evaluation.py --model_path "$checkpoint" "$@"
    checkpoints+=("$checkpoint")
done
step "base model: $base"
"$python" evaluation.py --model_path "$base" "$@"
"$python" scripts/scaling_points.py --base "$base" "${checkpoints[@]}"
