#!/usr/bin/env bash
# Step 4 on several nodes under Slurm: one torchrun a node, one process a GPU, FSDP2 over all of them.
# All arguments go to train.py. Run scripts/setup.sh once, on a disk that all nodes see.
#
#   sbatch --nodes 4 scripts/train_slurm.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 64 --sharding hybrid
#
# Slurm requeues the job when a node fails; when its time is over, the same sbatch line goes on from the
# newest checkpoint.
#SBATCH --job-name=scp
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
set -euo pipefail
# sbatch runs a copy of this file; the repository is where it was called.
root="${SCP_ROOT:-${SLURM_SUBMIT_DIR:?start me by sbatch, from the repository}}"
python="$root/.venv/bin/python"
[ -x "$python" ] || { echo "error: $python: not there; run: bash scripts/setup.sh" >&2; exit 2; }
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
gpus="${SLURM_GPUS_ON_NODE:-8}"
exec srun --kill-on-bad-exit=1 "$python" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$gpus" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:${PORT:-29500}" \
    "$root/train.py" "$@"
