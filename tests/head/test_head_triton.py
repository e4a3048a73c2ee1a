# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: run by Triton's interpreter on a CPU against the torch tiles, and compiled for a GPU."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version
from transformers.utils import is_triton_available

from trl_entropy.head.nucleus import BINS, CAPACITY


pytestmark = pytest.mark.skipif(not is_triton_available(), reason="needs Triton")


def test_interpreted():
    """In its own process, because Triton decides at import whether to interpret."""
    if Version(version("triton")) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("this interpreter takes no array of one element for a number, and this NumPy insists")
    tests = Path(__file__).parents[1] / "support" / "interpreted_kernels.py"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "26 passed" in result.stdout, result.stdout + result.stderr


POINTERS = {"targets_ptr": "*i64", "rows_ptr": "*i64", "found_ptr": "*i32", "top_ids_ptr": "*i64"}
FLOATS = {"logit_scale", "softcap", "inverse_temperature", "second_ratio", "likely", "inverse_bin_width"}


@pytest.mark.parametrize("kernel", ["_fold_kernel", "_count_kernel", "_differentiate_kernel"])
@pytest.mark.parametrize(
    "options", ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("none", "all but IS_FIRST"))]
)
def test_kernels_compile_for_a_gpu(kernel, options):
    """Compiles to machine code for compute capability 9.0, which does not need a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trl_entropy.head import triton_tiles

    function_ = getattr(triton_tiles, kernel)
    signature, constants = {}, {}
    for index, name in enumerate(function_.arg_names):
        if name.isupper():
            sizes = {"BLOCK": 1024, "BINS": BINS, "CAPACITY": CAPACITY, "TOP": 3 * (options != "none"), "PLACES": 4}
            constants[(index,)] = sizes.get(
                name, options == "all" or (options == "all but IS_FIRST" and name != "IS_FIRST")
            )
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*bf16" if name == "tile_ptr" else POINTERS.get(name, "*fp32")
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    source = ASTSource(fn=function_, signature=signature, constexprs=constants)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    except (ImportError, AttributeError, RuntimeError) as error:  # built without this backend
        pytest.skip(f"cannot compile for CUDA here: {error}")
    assert "cubin" in compiled.asm
