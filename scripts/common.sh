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

# json_value KEY COMMAND...: run the command, copy its output to stderr, and print the value of KEY in the JSON
# object on its last line. The copy is made by the shell: `tee /dev/stderr` would truncate a log file.
json_value() {
    local key="$1" output
    shift
    output=$("$@" | while IFS= read -r line; do printf '%s\n' "$line" >&2; printf '%s\n' "$line"; done) || return
    "$python" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$key" <<< "${output##*$'\n'}"
}

# continue_after_user_errors SENTENCE COMMAND...: run a command; after exit code 2 print the sentence and go on. Any other
# failure ends the script, Ctrl-C too, which Python scripts turn into 130: bash does not end by itself then.
continue_after_user_errors() {
    local sentence="$1" status=0
    shift
    "$@" || status=$?
    [ "$status" -ne 2 ] || echo "$sentence"
    [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || exit "$status"
}
