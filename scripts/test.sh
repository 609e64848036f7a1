#!/usr/bin/env bash
# All tests, offline. Arguments go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_io.py -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
# The page of interactive.py is tested in a real browser. A CI machine gets one; elsewhere those tests are
# skipped until you install it.
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && ! command -v chromium >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 \
        || echo "no Chromium to be had: the page is not tested"
fi
export HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
