#!/usr/bin/env bash
# Everything about the kernels that needs a GPU, in under ten minutes: builds the libraries in place, holds every backend
# to the reference in fp32, fp16 and bf16, and measures them. Needs torch with CUDA, triton, jaxtyping, pytest and nvcc;
# nothing is downloaded. Leaves bench/results/gpu-checks.txt and gpu.md, gpu.json, gpu.png; a copy in $OUT where that is
# a folder.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
results=bench/results
status=0
mkdir -p "$results"

echo "== build"
python3 setup.py -q build_ext --inplace || status=1

{
    echo "== machine"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    python3 -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
    echo "== what can run"
    python3 -c 'import json; from hardsample.kernels import ops; print(json.dumps(ops.backends("cuda"), indent=1))'
    echo "== every backend against the reference"
    # --noconftest: the fixtures of tests/ load the demo model, which needs libraries that the kernels do not.
    timeout 240 python3 -m pytest -q --noconftest -p no:cacheprovider -m gpu -rA \
        tests/kernels/test_ops.py tests/kernels/test_cuda.py tests/kernels/test_gpu_masks.py || status=1
} 2>&1 | tee "$results/gpu-checks.txt"
# A group on the left of a pipe cannot set `status`: read what it printed.
grep -qE "^(FAILED|ERROR)|no tests ran| failed" "$results/gpu-checks.txt" && status=1

echo "== benches"
timeout 330 python3 bench/run.py --device cuda --save gpu || status=1

if [[ -n "${OUT:-}" && -d "${OUT:-}" ]]; then
    cp "$results"/gpu* "$OUT/"
fi
exit $status
