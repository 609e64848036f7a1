#!/usr/bin/env bash
# Open-book evaluation over the paper's grid: chunk size, number of chunks, their order, temperature. Each point is
# one evaluation.py --rag and one output file. Finished points, embeddings and reranker scores are reused.
#
#   scripts/rag_sweep.sh --model_path ckpts/NAME                           # all points in sequence, then the table
#   sbatch --array 0-119%4 --gres gpu:1 scripts/rag_sweep.sh --model_path ckpts/NAME      # one point per task
#   .venv/bin/python scripts/rag_table.py --model_path ckpts/NAME          # the table of the finished points
#   CHUNKS="256 1024" TOP_KS="2 8" ORDERS=best_last TEMPERATURES=0.1 scripts/rag_sweep.sh …    # a part of the grid
#
# Options go to evaluation.py. `--protocol loglik` and `letter` have no temperature: 30 points instead of 120.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}" # sbatch runs a copy of this file
source scripts/common.sh
show_help "$@"
arguments=("$@") model=""
for i in "${!arguments[@]}"; do
    case "${arguments[$i]}" in
        --model_path) model="${arguments[$((i + 1))]:-}" ;;
        --model_path=*) model="${arguments[$i]#*=}" ;;
    esac
done
[ -n "$model" ] || fail "--model_path: missing; name a checkpoint"
task="${SLURM_ARRAY_TASK_ID:-}"
[ -n "$task" ] || bash scripts/setup.sh
temperatures="${TEMPERATURES:-0.1 0.3 0.5 0.7}"
case " $* " in *" --protocol l"* | *" --protocol=l"*) temperatures=0.1 ;; esac

number=0
for chunk in ${CHUNKS:-256 512 1024}; do
    for top_k in ${TOP_KS:-1 2 4 8 16}; do
        for order in ${ORDERS:-best_last best_first}; do
            for temperature in $temperatures; do
                if [ "${task:-$number}" = $number ]; then
                    step "chunk size $chunk, top_k $top_k, $order, temperature $temperature"
                    "$python" evaluation.py --rag --chunk_size "$chunk" --top_k "$top_k" --order "$order" \
                        --temperature "$temperature" "$@"
                fi
                number=$((number + 1))
            done
        done
    done
done
if [ -z "$task" ]; then
    "$python" scripts/rag_table.py --model_path "$model"
elif [ "$task" -ge $number ]; then
    echo "task $task: the grid has only the points 0 to $((number - 1))" >&2
fi
