#!/usr/bin/env bash
# How accuracy grows with synthetic tokens: trains on nested subsets of the passages, asks the questions of
# each checkpoint and of the base model, writes out/scaling.json. notebooks/nb_scaling.ipynb fits the curves.
#
#   RATIOS="0.03 0.1 0.3 1" scripts/scaling.sh --lr 5e-06 --bs 16 --task_name quality -- --task quality
#   scripts/scaling.sh --lr 1e-3 --bs 2 --task_name example --model SmolLM2-135M-Instruct … -- --task example --protocol loglik
#
# What stands before -- goes to train.py, what comes after it to evaluation.py. What is finished is not
# done again. Default RATIOS: 0.0625 0.125 0.25 0.5 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' scripts/scaling.sh; exit ;; esac
bash scripts/setup.sh
training=() base=meta-llama/Meta-Llama-3-8B
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case "$1" in
        --subsample_ratio*) echo "error: $1: RATIOS says which subsets" >&2; exit 2 ;;
        --model_name) base="${2:-}" ;;
        --model_name=*) base="${1#*=}" ;;
    esac
    training+=("$1")
    shift
done
[ $# -eq 0 ] || shift
case " $* " in *" --rag "*) echo "error: --rag: the curve is of what a model has learnt, so closed book" >&2; exit 2 ;; esac
checkpoints=()
for ratio in ${RATIOS:-0.0625 0.125 0.25 0.5 1}; do
    echo "== $ratio of the passages"
    said=$(./scripts/train.sh "${training[@]}" --subsample_ratio "$ratio" | tee /dev/stderr)
    folder=$(sed -nE 's/^(\/.*): (finished already|[0-9,]+ tokens at).*/\1/p' <<< "$said" | tail -1)
    .venv/bin/python evaluation.py --model_path "$folder" "$@"
    checkpoints+=("$folder")
done
echo "== none: $base"
.venv/bin/python evaluation.py --model_path "$base" "$@"
.venv/bin/python scripts/scaling_points.py --base "$base" "${checkpoints[@]}"
