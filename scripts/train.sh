#!/usr/bin/env bash
# Step 4: train.py with one process per GPU (FSDP2), or one process on a machine with one or none.
# All arguments go to train.py; `./scripts/train.sh --help` lists them.
#
#   ./scripts/train.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 16 --wd 0.01 --warmup 0.05 --task_name quality
#
# GPUS=2 ./scripts/train.sh ...   takes two GPUs in place of all
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup.sh"
python="$root/.venv/bin/python"
# The GPUs of CUDA_VISIBLE_DEVICES, else all; of these GPUS=n takes the first n.
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
