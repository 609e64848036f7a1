#!/usr/bin/env bash
# An OpenAI-compatible server for a checkpoint: vLLM where it is installed and there is a GPU, else
# `transformers serve`. Once it answers, it prints the lines that point evaluation.py and interactive.py at
# it; Ctrl-C ends it.
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
checkpoint="$1"
shift
for folder in "${SCP_HOME:-$root}/$checkpoint" "$checkpoint"; do # in the order of utils/paths.py
    if [ -d "$folder" ]; then
        folder="$(cd "$folder" && pwd)"
        [ -f "$folder/config.json" ] || { echo "error: $folder: holds no model (config.json)" >&2; exit 2; }
        checkpoint="$folder"
        break
    fi
done
if "$bin/python" -c 'import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)' \
    "${host/0.0.0.0/127.0.0.1}" "$port"; then
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
trap 'exit 130' INT TERM
until "$bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' \
    "http://${host/0.0.0.0/127.0.0.1}:$port/health" 2>/dev/null; do
    kill -0 $server 2>/dev/null || exit 1
    sleep 0.5
done
echo "python interactive.py --base_url http://$host:$port/v1 --model $checkpoint"
echo "python evaluation.py --base_url http://$host:$port/v1 --model_path $checkpoint"
wait $server
