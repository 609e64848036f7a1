#!/usr/bin/env bash
# An OpenAI-compatible server for a checkpoint: vLLM where it is installed and there is a GPU, else
# `transformers serve`. Once it answers, it prints the line that points interactive.py and evaluation.py at it;
# Ctrl-C ends it.
#
#   scripts/serve.sh ckpts/instruct-...
#   PORT=8001 HOST=0.0.0.0 scripts/serve.sh CKPT     # by default port 8000 of 127.0.0.1 alone
#
# What stands behind CKPT goes to the server.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -gt 0 ] || { echo "error: name a checkpoint: scripts/serve.sh CKPT" >&2; exit 2; }
bash "$root/scripts/setup.sh"
bin="$root/.venv/bin" host="${HOST:-127.0.0.1}" port="${PORT:-8000}"
address="${host/0.0.0.0/127.0.0.1}" # to call it at
checkpoint="$1"
shift
found=""
for folder in "${SCP_HOME:-$root}/$checkpoint" "$checkpoint"; do # in the order of utils/paths.py
    if [ -d "$folder" ]; then
        found="$(cd "$folder" && pwd)"
        break
    fi
done
if [ -n "$found" ]; then
    [ -f "$found/config.json" ] || { echo "error: $found: holds no model (config.json)" >&2; exit 2; }
    checkpoint="$found"
elif [[ "$checkpoint" != [!./]*/[!/]* || "$checkpoint" == */*/* || "$checkpoint" == ckpts/* ]]; then
    echo "error: $checkpoint: no such folder, and no name on the hub (ORGANISATION/NAME)" >&2
    exit 2
fi
if "$bin/python" -c 'import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)' \
    "$address" "$port"; then
    echo "error: port $port of $host is taken; PORT=... names another" >&2
    exit 2
fi
if nvidia-smi >/dev/null 2>&1 && "$bin/python" -c 'import vllm' 2>/dev/null; then
    "$bin/vllm" serve "$checkpoint" --host "$host" --port "$port" --dtype bfloat16 "$@" >&2 &
elif "$bin/python" -c 'import fastapi, uvicorn' 2>/dev/null; then
    "$bin/transformers" serve "$checkpoint" --host "$host" --port "$port" "$@" >&2 &
else
    echo "error: no server here; run: $bin/pip install -e '$root[serve]', or on a GPU: $bin/pip install vllm" >&2
    exit 2
fi
server=$!
trap 'kill $server 2>/dev/null; wait $server || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
until "$bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' \
    "http://$address:$port/health" 2>/dev/null; do
    kill -0 $server 2>/dev/null || exit 1
    sleep 0.5
done
printf 'python interactive.py --base_url %s --model_path %q    # or evaluation.py\n' "http://$address:$port/v1" "$checkpoint"
wait $server
