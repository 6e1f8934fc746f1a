#!/usr/bin/env bash
# Proves on a GPU what CI proves without one, and measures. One command, nothing installed or fetched:
#
#   tests/gpu/run.sh [--dry-run] [OUT]
#
# Results go to OUT (out/gpu by default), one JSON a part. PYTHON names an interpreter with torch, numpy and cuda-bindings;
# torchvision and compute-sanitizer are used where they are there. --dry-run needs no GPU: what can be exercised on a CPU is.
set -euo pipefail
cd "$(dirname "$0")/../.."
dry=()
if [ "${1:-}" = --dry-run ]; then
    dry=(--dry-run)
    shift
fi
out="${1:-out/gpu}"
mkdir -p "$out"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
cp -r streampose "$site/streampose"
cp -r engines plugins train "$site/streampose/"
export PYTHONPATH="$site:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python3}"
failed=()
for part in kernel network; do
    echo "tests/gpu/$part.py" >&2
    "$python" "tests/gpu/$part.py" ${dry[@]+"${dry[@]}"} >"$out/$part.json" || failed+=("$part")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
echo "results in $out" >&2
