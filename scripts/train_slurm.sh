#!/usr/bin/env bash
# Step 4 on several nodes under Slurm: one torchrun per node, one process per GPU, FSDP2 over all of them.
# All arguments go to train.py. Run scripts/setup.sh once, on a disk shared by all nodes.
#
#   sbatch --nodes 4 scripts/train_slurm.sh --lr 5e-06 --rr 0.1 --epochs 2 --bs 64 --sharding hybrid
#
# Slurm requeues the job if a node fails. After the time limit, the same sbatch line resumes from the newest
# checkpoint.
#SBATCH --job-name=scp
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
set -euo pipefail
# sbatch runs a copy of this file; the repository is the folder it was called from.
source "${SCP_ROOT:-${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}}/scripts/common.sh"
show_help "$@"
[ -n "${SLURM_JOB_ID:-}" ] || fail "no Slurm job; start this script by sbatch, from the repository"
[ -x "$python" ] || fail "$python: no such file; run: bash scripts/setup.sh"
first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
gpus="${SLURM_GPUS_ON_NODE:-8}"
exec srun --kill-on-bad-exit=1 "$python" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$gpus" \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:${PORT:-29500}" \
    "$root/train.py" "$@"
