#!/usr/bin/env bash
# All GPU tests, then the memory tests under compute-sanitizer.  Needs torch, pytest, and the plugin
# library: installed, in optimizer/opfuse/lib, or named by OPFUSE_PLUGINS.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="optimizer:.${PYTHONPATH:+:$PYTHONPATH}"
python3 -m pytest -q -m gpu -p no:cacheprovider -s tests/gpu "$@" | tail -40
# Without torch's caching allocator, so that each buffer is an allocation that memcheck knows.
for tool in memcheck racecheck initcheck synccheck; do
    echo "compute-sanitizer $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        python3 -m pytest -q -m gpu -p no:cacheprovider tests/gpu \
        -k "memory_is_exact" | tail -4
done
