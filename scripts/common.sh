# Sourced by the scripts in this folder: --help, headings, and results of other programs.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

# Print an error and exit, as utils/errors.py does.
fail() { echo "error: $1" >&2; exit 2; }

# Print the heading of a step.
step() { printf '\n== %s\n' "$*"; }

# With -h or --help among the arguments: print the header comment of the calling script and exit.
show_help() {
    case " $* " in *" -h "* | *" --help "*) ;; *) return ;; esac
    awk 'NR == 1 { next } !/^#( |$)/ { exit } { sub(/^# ?/, ""); print }' "$root/scripts/$(basename "$0")"
    exit
}

# Copy the input to stderr and to stdout, after Ctrl-C to its end; JSON is not shown on a terminal. The shell does it:
# `tee /dev/stderr` would truncate a log file.
copy() {
    local line
    trap '' INT
    while IFS= read -r line; do
        [[ -t 2 && "$line" == "{"* ]] || printf '%s\n' "$line" >&2
        printf '%s\n' "$line"
    done
}

# json_value KEYS COMMAND...: run the command, copy its output to stderr, and print the values of KEYS, one or several
# words, in the JSON object on its last line.
json_value() {
    local keys="$1" output
    shift
    output=$("$@" | copy) || return
    "$python" -c 'import json, sys; result = json.load(sys.stdin); print(*(result[key] for key in sys.argv[1].split()))' \
        "$keys" <<< "${output##*$'\n'}"
}

# continue_after_user_errors SENTENCE COMMAND...: run a command, and go on with what came if some of its calls failed: then
# its exit code is 2, and its last line is the result, in JSON. Any other failure ends the script: a step that could not
# begin, and Ctrl-C, which Python scripts turn into 130: bash does not end by itself then.
continue_after_user_errors() {
    local sentence="$1" status=0 output
    shift
    output=$("$@" | copy) || status=$?
    [ "$status" -ne 0 ] || return 0
    [ "$status" -eq 2 ] && [[ "${output##*$'\n'}" == "{"* ]] || exit "$status"
    echo "$sentence"
}
