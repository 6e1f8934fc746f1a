#!/usr/bin/env bash
# Proves on a GPU what CI proves without one, and measures. One command, nothing fetched:
#
#   tests/gpu/run.sh [--dry-run] [--wheels DIR] [OUT]
#
# What is needed travels with the repository, and PYTHON names an interpreter with torch for CUDA, numpy, OpenCV, msgspec
# and cuda-bindings. Packages that it lacks may lie in DIR as wheels. torchvision, onnx and onnxruntime, any TensorRT and
# compute-sanitizer are used where they are there. OUT (out/gpu by default) gets a JSON and a log a part, and table.md,
# which is for docs/gpu.md. Takes 8 minutes at most. --dry-run needs no GPU: what can be exercised on a CPU is.
#
# Ends with 0 where all ran and is well, 1 where something is wrong, 3 where all is well but something did not run; what
# did not is listed with its reason.
set -euo pipefail
cd "$(dirname "$0")/../.."
dry=()
slack=1
wheels=
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run)
            dry=(--dry-run)
            slack=5 # a CPU has to compile the kernels with g++, and to run them
            export OMP_NUM_THREADS=1
            ;;
        --wheels)
            wheels="${2:?--wheels names a folder}"
            shift
            ;;
        -*)
            echo "run.sh: unknown option $1; there are --dry-run and --wheels DIR" >&2
            exit 2
            ;;
        *) break ;;
    esac
    shift
done
if [ $# -gt 1 ]; then
    echo "run.sh: one folder for the results, not $#" >&2
    exit 2
fi
out="$(mkdir -p "${1:-out/gpu}" && cd "${1:-out/gpu}" && pwd)"
rm -f "$out"/*.json "$out"/*.log "$out"/table.md
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
python="${PYTHON:-python3}"
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
fi
cp -r streampose "$site/streampose"
cp -r engines plugins train "$site/streampose/"
export PYTHONPATH="$site:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 STREAMPOSE_ENGINES="$site/store"

# part PART SECONDS [ARGUMENT ...]
part() {
    local name="$1" seconds="$(($2 * slack))" status=0
    shift 2
    echo "tests/gpu/$name.py, $seconds s at most" >&2
    timeout --kill-after 5 "$seconds" "$python" "tests/gpu/$name.py" ${dry[@]+"${dry[@]}"} "$@" \
        >"$out/$name.json" 2>"$out/$name.log" || status=$?
    if [ "$status" -ne 0 ]; then
        echo "tests/gpu/$name.py ended with $status$([ "$status" = 124 ] && echo ": out of time"); its last words:" >&2
        tail -n 5 "$out/$name.log" >&2
        failed=1
    fi
    return 0
}

failed=0
part have 30
if [ "$failed" = 1 ]; then exit 1; fi
part kernel 110
part network 80
mkdir "$site/bundles"
part engines 150 "$site/bundles" --seconds 120
part sanitizer 105 --seconds 100
status=0
"$python" tests/gpu/table.py "$out" >"$out/table.md" || status=$?
cat "$out/table.md"
if [ "$failed" = 1 ]; then status=1; fi
case "$status" in
    0) echo "run.sh: all ran and is well; results in $out" >&2 ;;
    3) echo "run.sh: what ran is well, but not all ran (see above); results in $out" >&2 ;;
    *) echo "run.sh: something is wrong (see above); results in $out" >&2 ;;
esac
exit "$status"
