# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Speed and correctness on one GPU, in under eight minutes: kernels, heads, optimizer steps, condition numbers.

    python recipes/benchmarks/gpu_check.py --output runs/gpu_check
    python recipes/benchmarks/gpu_check.py --output runs/gpu_check --small    # rehearsal on a CPU, with small sizes

Writes `gpu_check.json` and `gpu_check.md` after each row, so that a run that is cut can be read too. Each part has a
time box, a share of `--budget`. A part that fails, hangs or crashes is reported, and the next one runs. Ratios compare
runs that alternate. Times are medians by synchronized timers, without the warm-up.

Nothing is read from the network, and models are random. On a machine without network, install wheels that were fetched
elsewhere: `torch` with CUDA and the `nvidia-*` wheels that it names, `triton`, `trl`, `transformers`, `accelerate`,
`peft`, `datasets` (with `pyarrow`), `pandas`, `matplotlib`, `threadpoolctl`, `huggingface_hub`, `jinja2` and `xxhash`.
The package itself is that of this checkout. What is missing is named at the start.

The exit status is 0 if all parts ran and all checked numbers are right, 1 if not, and 2 if something is missing.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import time
import tomllib
from functools import partial
from pathlib import Path

from gpu_report import DONE, Part, Report, run_parts, supervise


STARTED = time.time()
ROOT = Path(__file__).resolve().parents[2]
BUDGET = 450  # seconds
RESERVE = 10  # seconds of the budget for the end
BROKEN = 3  # exit status of a worker whose GPU does not answer any more
# Title and share of the time
PARTS = {
    "kernels": ("Triton kernels against float64", 20),
    "head": ("Head: time and memory, first width", 12),
    "steps": ("Optimizer steps, each method against stock TRL", 45),
    "head-wide": ("Head: time and memory, second width", 12),
    "distillation": ("Distillation heads", 8),
    "kappa": ("KappaTune: condition numbers", 12),
}
SIZES = {
    "gpu": dict(
        **dict(device="cuda", dtype="bfloat16", tokens=8192, rows=8, vocab=151936, widths=(1536, 3584), rounds=7),
        **dict(checked_tokens=256, checked_vocab=151936, student=1024, teacher=2048),
        **dict(hidden=896, intermediate=4864, layers=24),
        **dict(kappa_hidden=1024, kappa_layers=6, kappa_vocab=16512),
    ),
    "small": dict(
        **dict(device="cpu", dtype="float32", tokens=128, rows=8, vocab=300, widths=(32, 48), rounds=2),
        **dict(checked_tokens=16, checked_vocab=100, student=16, teacher=32),
        **dict(hidden=64, intermediate=128, layers=1),
        **dict(kappa_hidden=128, kappa_layers=2, kappa_vocab=16512),
    ),
}


def requirements() -> list[str]:
    """What pyproject.toml asks for, with PEFT and Triton."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["peft"], "triton"]


def installed(requirement: str) -> tuple[str, str | None]:
    """The name in a requirement, and the installed version."""
    name = re.match(r"[\w.-]+", requirement)[0]
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, None


def facts() -> tuple[dict[str, str], list[str]]:
    """Versions of packages, and names of those that are missing."""
    versions = dict(installed(requirement) for requirement in requirements())
    missing = [name for name, version in versions.items() if version is None]
    found = {"python": platform.python_version(), "packages": ", ".join(f"{k} {v}" for k, v in versions.items())}
    if importlib.util.find_spec("packaging"):
        from packaging.requirements import Requirement

        old = [
            f"{name} {versions[name]} is not {requirement}"
            for requirement in requirements()
            if versions[name := installed(requirement)[0]]
            and not Requirement(requirement).specifier.contains(versions[name], prereleases=True)
        ]
        found |= {"versions outside pyproject.toml": "; ".join(old)} if old else {}
    return found, missing


def device_facts(sizes: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """The device, and what is missing of it."""
    import torch

    found = {"torch": f"{torch.__version__}, CUDA {torch.version.cuda}", "threads": str(torch.get_num_threads())}
    if sizes.device != "cuda":
        return found | {"device": "CPU, a rehearsal: its numbers say nothing of a GPU"}, []
    if not torch.cuda.is_available():
        return found, ["a CUDA device (use --small for a rehearsal on a CPU)"]
    device = torch.cuda.get_device_properties(0)
    capability = f"compute capability {device.major}.{device.minor}"
    return found | {"device": f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {capability}"}, []


def work(options: argparse.Namespace, sizes: argparse.Namespace, end: float) -> int:
    """Runs the parts of the report that have not run."""
    import gpu_heads
    import gpu_training
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_float32_matmul_precision("highest")
    functions = {
        "kernels": gpu_heads.kernels,
        "head": partial(gpu_heads.speed, width=sizes.widths[0]),
        "head-wide": partial(gpu_heads.speed, width=sizes.widths[1]),
        "steps": gpu_training.steps,
        "distillation": gpu_heads.distillation_heads,
        "kappa": gpu_training.condition_numbers,
    }

    def usable() -> bool:
        try:
            if sizes.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            return True
        except RuntimeError:
            return False

    shares = {name: share for name, (_, share) in PARTS.items()}
    return 0 if run_parts(Report.read(options.output), functions, shares, end, sizes, usable=usable) else BROKEN


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gpu_check"), help="folder of the report (%(default)s)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (all)")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="for all parts (%(default)s)")
    parser.add_argument("--small", action="store_true", help="small sizes on a CPU, kernels in Triton's interpreter")
    parser.add_argument("--worker-end", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    sizes = argparse.Namespace(**SIZES["small" if options.small else "gpu"])
    if options.worker_end is not None:
        return work(options, sizes, options.worker_end)
    found, missing = facts()
    print(*(f"{name}: {value}" for name, value in found.items()), sep="\n", flush=True)
    report = Report(options.output, found, [Part(name, PARTS[name][0]) for name in options.parts])
    if "torch" not in missing:
        of_device, lacking = device_facts(sizes)
        found |= of_device
        missing += lacking
    report.write()
    if missing:
        found["missing"] = ", ".join(missing)
        report.write()
        print(f"Missing: {found['missing']}", flush=True)
        return 2
    end = STARTED + options.budget - RESERVE
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if options.small:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--worker-end", str(end)]
    supervise(command, options.output, end, environment=environment)
    report = Report.read(options.output)
    report.facts["seconds in all"] = f"{time.time() - STARTED:.0f} of {options.budget:.0f}"
    report.write()
    print(report.markdown(), flush=True)
    return 0 if all(part.status == DONE and not part.wrong for part in report.parts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
