#!/usr/bin/env bash
# Open-book evaluation over the paper's grid: size of the passages, how many, their order, temperature.
# Each point is one evaluation.py --rag, whose file it keeps: what is finished, embedded or reranked is
# not done again, by this run or another.
#
#   scripts/rag_sweep.sh --model_path ckpts/NAME                           # one point after the other, then the table
#   sbatch --array 0-119%4 --gres gpu:1 scripts/rag_sweep.sh --model_path ckpts/NAME      # a point a task
#   .venv/bin/python scripts/rag_table.py --model_path ckpts/NAME          # the table of what is there
#   CHUNKS="256 1024" TOP_KS="2 8" ORDERS=best_last TEMPERATURES=0.1 scripts/rag_sweep.sh …    # a part of it
#
# Options go to evaluation.py. `--protocol loglik` and `letter` have no temperature: 30 points for 120.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
case " $* " in
    *" -h "* | *" --help "*) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' scripts/rag_sweep.sh; exit ;;
    *" --model_path"*) ;;
    *) echo "error: --model_path: which checkpoint?" >&2; exit 2 ;;
esac
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || bash scripts/setup.sh
temperatures="${TEMPERATURES:-0.1 0.3 0.5 0.7}"
case " $* " in *" --protocol l"* | *" --protocol=l"*) temperatures=0.1 ;; esac

number=0
for chunk in ${CHUNKS:-256 512 1024}; do
    for top_k in ${TOP_KS:-1 2 4 8 16}; do
        for order in ${ORDERS:-best_last best_first}; do
            for temperature in $temperatures; do
                if [ "${SLURM_ARRAY_TASK_ID:-$number}" = $number ]; then
                    echo "== chunk $chunk, top_k $top_k, $order, temperature $temperature"
                    .venv/bin/python evaluation.py --rag --chunk_size "$chunk" --top_k "$top_k" --order "$order" \
                        --temperature "$temperature" "$@"
                fi
                number=$((number + 1))
            done
        done
    done
done
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    [ "$SLURM_ARRAY_TASK_ID" -lt $number ] || echo "this grid has the points 0 to $((number - 1)), and no $SLURM_ARRAY_TASK_ID" >&2
    exit
fi
arguments=("$@")
for i in "${!arguments[@]}"; do
    case "${arguments[$i]}" in
        --model_path) model="${arguments[$((i + 1))]}" ;;
        --model_path=*) model="${arguments[$i]#--model_path=}" ;;
    esac
done
.venv/bin/python scripts/rag_table.py --model_path "$model"
