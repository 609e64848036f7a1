#!/usr/bin/env bash
# Fetch QuALITY's two official files (nyu-mll/quality, v1.0.1, commit f84977c) into data/dataset/raw/.
# Files that are there already are kept, after a look at the train file's hash.
#
#   bash scripts/download_data.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder="${SCP_HOME:-.}/data/dataset/raw"
base="${QUALITY_URL:-https://raw.githubusercontent.com/nyu-mll/quality/f84977c/data/v1.0.1}"
train_sha256=4011e9952d5395beb8ff7637b963481a400630c1bbe2f40dc0d83f5d59f926ed  # 10,881,962 bytes
mkdir -p "$folder"

fail() { echo "error: $1" >&2; exit 2; }

# The dev file's hash is not published: the first download records it, later ones are held to it.
check() {
    local path="$1" name expected actual
    name="$(basename "$path")"
    actual="$(sha256sum < "$path" | cut -d' ' -f1)"
    case "$name" in
        *.train) expected="$train_sha256" ;;
        *) [ -f "$path.sha256" ] || echo "$actual" > "$path.sha256"; expected="$(cat "$path.sha256")" ;;
    esac
    [ "$actual" = "$expected" ] || fail "$path: its sha256 is $actual, not $expected; delete it and run this again"
    echo "$path: $(wc -c < "$path") bytes, sha256 $actual"
}

for split in train dev; do
    path="$folder/QuALITY.v1.0.1.htmlstripped.$split"
    if [ ! -f "$path" ]; then
        curl --fail --silent --show-error --location --max-time 300 --output "$path.part" "$base/$(basename "$path")" \
            || { rm -f "$path.part"; fail "cannot fetch $base/$(basename "$path"); put the file at $path by hand"; }
        mv "$path.part" "$path"
    fi
    check "$path"
done
