# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the tests marked `compatibility`, and writes their outcomes to docs/compatibility.md.

`python -m tests.support.compatibility` from the root of the repository, or `make compatibility`, and for columns of
other environments `make compatibility-deepspeed`, `make compatibility-vllm` and `make compatibility-qlora`. With
`--only NAME ...` only the rows of these methods are run, and with `--features FEATURE ...` only these columns. The
others keep their outcomes, as do those whose tests are skipped, because they need another environment.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "compatibility.md"
OUTCOMES = ROOT / "docs" / "compatibility.json"

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
TRAINING = ("LoRA", "QLoRA", "bf16", "gradient checkpointing", "torch.compile", "num_iterations: 2", "kill and resume")
PROCESSES = ("2 processes (DDP)", "2 processes (FSDP2)", "2 processes (ZeRO-3)", "vLLM")
SECTIONS = {"Loss types": LOSSES, "Training": TRAINING, "Processes and engines": PROCESSES}
WORDS = {"passed": "yes", "failed": "**no**", "refused": "refused", None: "not tested"}

HEAD = """# Compatibility

`make compatibility` writes this page from the outcomes of the tests marked `compatibility`. *yes*: the tests of this
method with this feature pass. **no**: one fails. *refused*: the method rejects it with an error that says why. *not
tested*: no test runs it.

Everything ran on a CPU with two-layer models. For each loss type, a run of three optimizer steps, two of them on one
generation batch, stays finite and differs from the run without the method. With LoRA only the adapter moves. Gradient
checkpointing and `torch.compile` (backend `aot_eager`) do not change the run. *kill and resume* is `kill -9` in the
middle of a step; the resumed run equals the uninterrupted one in completions, losses and weights. Two processes give
the same run under FSDP2 as under DDP. accelerate has no FSDP on a CPU, so the test makes it treat the processes' CPUs
as accelerators.

DeepSpeed is not among the dependencies. `make test-deepspeed` makes an environment with it and runs two processes on a
CPU. Each method gives the same run of three steps under ZeRO-3 as under DDP: logs of the first step agree to 3e-6 of
their size, those of later steps to 1e-4, because AdamW magnifies rounding. The same holds under ZeRO-1 and ZeRO-2 for
no method, `clip_cov`, `kl_cov`, `siren`, `epo`, `aepo` with `aepo_mode: reweight`, LoRA, the `pi` controller of the
entropy bonus, the thermostat `entropy_keep`, and distillation with TIP. Under ZeRO-3, these also work: a model loaded
in parts, with a reference model; `ds3_gather_for_generation: false`; resuming, which reproduces the uninterrupted run;
and the comparison of the fused head with the plain logits, made in the first forward. Not run: offloading, bf16, GPUs,
several machines, and the trainers for GKD, SDFT and SDPO under DeepSpeed.

vLLM is not among the dependencies either. `make test-vllm` makes an environment with vLLM 0.31 for CPUs and
transformers 5.17, and generates with a real engine in the training process (`vllm_mode: colocate`). The engine
computes in bfloat16 and the trainer in float32, so their log-probabilities differ by a few hundredths, and TRL's
correction for that acts. With no method and `fused_head: false`, logs and weights are those of stock TRL to the bit,
also with tools, in distillation, and on two processes with an engine each. Each method runs for three steps or more,
stays finite, and differs from the run without it. `branching` runs in TRL's loop of tools, the others without tools;
`spear`, `agentic_aepo`, `empg` and `epo` also with them. Further tests: entropies and corrections in all four modes
against the model's logits, combinations of methods, the thermostat, KappaTune, LoRA, and distillation with TIP. Not
run: `vllm_mode: server`, because TRL sends weights to a server from GPUs only; GPUs; sleep mode; tensor parallelism;
images.

*QLoRA* is LoRA on a model that bitsandbytes has quantized to 4 bits (nf4, double quantization), on a CPU: `make
test-qlora`, in the environment of vLLM. The base stays as it is to the bit and the adapter moves, otherwise than
without the method. With no method and `fused_head: false` the run is stock TRL's to the bit.
"""


def cells_of(item: pytest.Item) -> list[tuple[str, str]]:
    """The (method, feature) pairs that a test's outcome is about; empty if several methods run at once."""
    marker = item.get_closest_marker("compatibility")
    params = item.callspec.params if marker and hasattr(item, "callspec") else {}
    methods = params.get("methods", [])
    return [(methods[0], marker.args[0].format(**params))] if len(methods) == 1 else []


class Recorder:
    """A pytest plugin: runs only tests that are about a pair, and keeps their outcomes.

    Args:
        only: the methods to run; all if `None`.
        features: the columns to run; all if `None`.

    Attributes:
        skipped: the pairs whose test was skipped.
    """

    def __init__(self, only: Collection[str] | None = None, features: Collection[str] | None = None):
        self.only, self.features = only, features
        self.skipped: list[tuple[str, str]] = []
        self.cells: dict[str, list[tuple[str, str]]] = {}
        self.outcomes: dict[str, dict[str, str]] = defaultdict(dict)

    def pytest_collection_modifyitems(self, items):
        cells = {item.nodeid: cells_of(item) for item in items}
        self.cells = {
            nodeid: [
                (method, feature)
                for method, feature in found
                if (self.only is None or method in self.only) and (self.features is None or feature in self.features)
            ]
            for nodeid, found in cells.items()
        }
        items[:] = [item for item in items if self.cells[item.nodeid]]

    def pytest_runtest_logreport(self, report):
        for method, feature in self.cells[report.nodeid]:
            if report.skipped:
                self.skipped.append((method, feature))
            elif report.failed:
                self.outcomes[method][feature] = "failed"
            elif report.when == "call" and report.passed:
                outcome = dict(report.user_properties).get("compatibility", "passed")
                self.outcomes[method].setdefault(feature, outcome)


def render(outcomes: dict[str, dict[str, str]], methods: list[str]) -> str:
    """The page, with a table for each section and a row for each method."""
    parts = [HEAD]
    for title, features in SECTIONS.items():
        lines = ["| | " + " | ".join(features) + " |", "|---" * (len(features) + 1) + "|"]
        for method in methods:
            words = [WORDS[outcomes.get(method, {}).get(feature)] for feature in features]
            lines.append(f"| `{method}` | " + " | ".join(words) + " |")
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def merged(
    stored: dict[str, dict[str, str]],
    found: dict[str, dict[str, str]],
    only: Collection[str] | None,
    features: Collection[str] | None = None,
    skipped: Collection[tuple[str, str]] = (),
) -> dict[str, dict[str, str]]:
    """The outcomes of a run, and the stored ones of methods and features that it left out or whose test it skipped."""
    outcomes = {name: dict(row) for name, row in found.items()}
    for name, row in stored.items():
        for feature, outcome in row.items():
            chosen = (only is None or name in only) and (features is None or feature in features)
            if not chosen or (name, feature) in skipped:
                outcomes.setdefault(name, {}).setdefault(feature, outcome)
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    from trl_entropy.methods import METHODS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(METHODS), help="methods to run")
    known = [feature for section in SECTIONS.values() for feature in section]
    parser.add_argument("--features", nargs="+", metavar="FEATURE", choices=known, help="columns to run")
    chosen = parser.parse_args(arguments)
    recorder = Recorder(chosen.only, chosen.features)
    status = pytest.main(["-p", "no:xdist", "-m", "compatibility", str(ROOT / "tests")], plugins=[recorder])
    stored = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {}
    outcomes = merged(stored, recorder.outcomes, recorder.only, recorder.features, recorder.skipped)
    outcomes = {name: row for name, row in outcomes.items() if name in METHODS}
    OUTCOMES.parent.mkdir(exist_ok=True)
    OUTCOMES.write_text(json.dumps(outcomes, indent=1, sort_keys=True) + "\n")
    TABLE.write_text(render(outcomes, list(METHODS)))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
