#!/usr/bin/env bash
# Step 4 on one machine: train.py with one process per GPU (FSDP2), or one process with one GPU or none.
# All arguments go to train.py; `./scripts/train.sh --help` lists them.
#
#   ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 16 --wd 0.01 --warmup 0.05 --task_name quality
#   GPUS=2 ./scripts/train.sh …    # the first two GPUs instead of all
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
bash "$root/scripts/setup.sh"
# The GPUs in CUDA_VISIBLE_DEVICES, else all; GPUS=n keeps the first n of them.
visible="${CUDA_VISIBLE_DEVICES-$( (nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true) | paste -sd, -)}"
case "${GPUS:-all}" in
    all) ;;
    0) visible="" ;;
    *) visible="$(cut -d, -f"1-$GPUS" <<< "$visible")" ;;
esac
export CUDA_VISIBLE_DEVICES="$visible"
gpus="$(awk -F, '{ print NF }' <<< "$visible")"
if [ "$gpus" -gt 1 ]; then
    exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$gpus" "$root/train.py" "$@"
fi
if [ "$gpus" -eq 0 ]; then
    source "$root/scripts/cpu_env.sh"
fi
exec "$python" "$root/train.py" "$@"
