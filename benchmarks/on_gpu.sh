#!/usr/bin/env bash
# What a GPU says, in eight minutes, in order of value: each part has a limit of its own, and what a
# part has found stays if a later one fails. JSON files, with tables and charts beside them, in OUT.
#
#   bash benchmarks/on_gpu.sh [OUT]
#   DEVICE=cpu SCALE=smoke bash benchmarks/on_gpu.sh [OUT]    # tries every line, without a GPU
#
# PYTHON names the interpreter, and RUN=0 says what would be run and runs nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-out/gpu}
DEVICE=${DEVICE:-gpu}
SCALE=${SCALE:-full}
PYTHON=${PYTHON:-python3}
RUN=${RUN:-1}
mkdir -p "$OUT"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$OUT/cache}
failed=0

# part NAME SECONDS COMMAND ...: the command's words go to NAME.log.
part() {
  local name=$1 limit=$2
  shift 2
  echo "$name, at most $limit s: $*"
  [ "$RUN" = 1 ] || return 0
  timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
  local code=$?
  tail -n 20 "$OUT/$name.log"
  [ $code = 0 ] || { echo "$name ended with $code"; failed=1; }
}

# measure NAME SECONDS CASE ...
measure() {
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" "$PYTHON" -m benchmarks run "$@" \
    --device "$DEVICE" --scale "$SCALE" --out "$OUT/$name" --json "$OUT/$name.json"
}

measure precision 75 precision
measure kernels 60 kernels
measure systems 120 maml imaml --against peers
measure vsml 60 vsml_published

# Several processes share the card: none may take all of its memory.
tests=(tests/test_contract.py tests/test_estimators.py tests/test_implicit.py tests/test_lstm.py tests/test_vsml.py)
[ "$SCALE" = full ] || tests=(tests/test_estimators.py)
XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS="--xla_gpu_autotune_level=0" \
  part tests 150 "$PYTHON" -m pytest -q -n 8 -m "not slow" "${tests[@]}"
exit $failed
