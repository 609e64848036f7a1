#!/usr/bin/env bash
# All tests, offline. Arguments go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/tasks/test_scoring.py -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
show_help "$@"
bash scripts/setup.sh
# The web page is tested in Chromium. In CI it is installed; elsewhere these tests are skipped without it.
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && ! command -v chromium >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 \
        || echo "Chromium could not be installed: the web page is not tested"
fi
export HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two workers with two threads each are slower on two cores
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
