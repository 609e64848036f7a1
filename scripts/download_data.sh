#!/usr/bin/env bash
# Download the two official files of QuALITY (nyu-mll/quality, v1.0.1, commit f84977c) to data/dataset/raw/.
# Existing files are kept; their sha256 is checked.
#
#   bash scripts/download_data.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh
show_help "$@"
folder="${SCP_HOME:-.}/data/dataset/raw"
base="${QUALITY_URL:-https://raw.githubusercontent.com/nyu-mll/quality/f84977c/data/v1.0.1}"
train_sha256=4011e9952d5395beb8ff7637b963481a400630c1bbe2f40dc0d83f5d59f926ed  # 10,881,962 bytes
mkdir -p "$folder"

# The sha256 of the dev file is not published: the first download records it, and later ones must match.
check() {
    local path="$1" expected actual
    actual="$(sha256sum < "$path" | cut -d' ' -f1)"
    case "$path" in
        *.train) expected="$train_sha256" ;;
        *) [ -f "$path.sha256" ] || echo "$actual" > "$path.sha256"; expected="$(cat "$path.sha256")" ;;
    esac
    [ "$actual" = "$expected" ] || fail "$path: its sha256 is $actual, not $expected; delete it and run this again"
    echo "$path: $(wc -c < "$path") bytes, sha256 $actual"
}

for split in train dev; do
    path="$folder/QuALITY.v1.0.1.htmlstripped.$split"
    if [ ! -f "$path" ]; then
        url="$base/$(basename "$path")"
        curl --fail --silent --show-error --location --max-time 300 --output "$path.part" "$url" \
            || { rm -f "$path.part"; fail "$url: cannot be downloaded; copy the file to $path"; }
        mv "$path.part" "$path"
    fi
    check "$path"
done
