#!/usr/bin/env bash
# Serve a checkpoint with an OpenAI-compatible API: vLLM if it is installed and there is a GPU, else
# `transformers serve`. Prints the command line for interactive.py and evaluation.py as soon as the server is ready;
# Ctrl-C stops it.
#
#   scripts/serve.sh ckpts/instruct-...
#   PORT=8001 HOST=0.0.0.0 scripts/serve.sh CKPT     # default: port 8000 of 127.0.0.1
#
# Further arguments are passed to the server.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit ;; esac
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -gt 0 ] || { echo "error: name a checkpoint: scripts/serve.sh CKPT" >&2; exit 2; }
bash "$root/scripts/setup.sh"
bin="$root/.venv/bin" host="${HOST:-127.0.0.1}" port="${PORT:-8000}"
address="${host/0.0.0.0/127.0.0.1}" # for clients
checkpoint="$1"
shift
for folder in "${SCP_HOME:-$root}/$checkpoint" "$checkpoint"; do # as in utils/paths.py, resolve_checkpoint
    [ -d "$folder" ] || continue
    checkpoint="$(cd "$folder" && pwd)"
    [ -f "$checkpoint/config.json" ] || { echo "error: $checkpoint: holds no model (config.json)" >&2; exit 2; }
    break
done
if [[ ! -d "$checkpoint" && ( "$checkpoint" != [!./]*/[!/]* || "$checkpoint" == */*/* || "$checkpoint" == ckpts/* ) ]]; then
    echo "error: $checkpoint: no such folder, and not a hub name (ORGANIZATION/NAME)" >&2
    exit 2
fi
if "$bin/python" -c 'import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)' \
    "$address" "$port"; then
    echo "error: port $port of $host is taken; choose another with PORT=..." >&2
    exit 2
fi
if nvidia-smi >/dev/null 2>&1 && "$bin/python" -c 'import vllm' 2>/dev/null; then
    "$bin/vllm" serve "$checkpoint" --host "$host" --port "$port" --dtype bfloat16 "$@" >&2 &
elif "$bin/python" -c 'import fastapi, uvicorn' 2>/dev/null; then
    "$bin/transformers" serve "$checkpoint" --host "$host" --port "$port" "$@" >&2 &
else
    echo "error: no server installed; run: $bin/pip install -e '$root[serve]', or on a GPU: $bin/pip install vllm" >&2
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
