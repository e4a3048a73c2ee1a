# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Time to compute the condition numbers of a model: ours, PEFT's selector, and the paper's full decomposition.

    python recipes/benchmarks/kappa.py              # decoder layers of Qwen3-0.6B's shapes, random weights, all cores
    python recipes/benchmarks/kappa.py --threads 1  # one thread each

The model is built and saved in a temporary folder. Each round runs all three on one decoder layer, so that a slow
phase of the machine affects all of them; ratios are medians over the rounds. If other programs use the same cores,
compare processor seconds with one thread, because a decomposition on several threads waits for the slowest. The full
decomposition runs only in the first `--full` rounds. Then the command's path is timed: the whole model, read from its
file, without and with a cache, and the command as its own process with a filled cache.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft.helpers import KappaTuneSelector
from threadpoolctl import threadpool_limits
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from trl_entropy.kappa import analysis
from trl_entropy.kappa.cache import KappaCache
from trl_entropy.kappa.inventory import layers_of
from trl_entropy.kappa.selection import Selection
from trl_entropy.kappa.sources import CheckpointSource, LiveSource


def build_model(options) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=options.vocabulary,  # above 16384, so that PEFT also excludes the output head
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128,
        head_dim=128,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def timed(function) -> tuple[float, float, object]:
    """Wall seconds, processor seconds, and the result of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - processor, result


def full_decomposition(module) -> dict[str, float]:
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            _, values, _ = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
            found[name] = (values[0] / values[-1]).item()
    return found


def peft_numbers(module) -> dict[str, float]:
    selector = KappaTuneSelector(module, show_progress=False)
    selector._compute_kappas()
    return selector._condition_numbers


def own_numbers(model, index: int) -> dict[str, float]:
    prefix = f"model.layers.{index}."
    layers = [layer for layer in layers_of(model) if layer.name.startswith(prefix)]
    done = analysis.compute(LiveSource(model), sorted(layers, key=lambda layer: -layer.cost), progress=False)
    return {layer.name.removeprefix(prefix): layer.kappa() for layer, _ in done}


def difference(found: dict[str, float], expected: dict[str, float]) -> float:
    return max(abs(found[name] / expected[name] - 1) for name in expected)


def rounds(model, options) -> None:
    times, errors = {"ours": [], "PEFT": [], "full": []}, []
    for index in range(options.layers):
        module = model.model.layers[index]
        ours, theirs = lambda: own_numbers(model, index), lambda: peft_numbers(module)  # noqa: B023 (called at once)
        kinds = {"ours": ours, "PEFT": theirs}
        if index < options.full:
            kinds["full"] = lambda: full_decomposition(module)  # noqa: B023
        results = {}
        for kind, function in kinds.items():
            *seconds, results[kind] = timed(function)
            times[kind].append(seconds)
        errors.append(difference(results["PEFT"], results["ours"]))
    print(f"{'':8}{'rounds':>8}{'wall s':>10}{'cpu s':>10}{'wall ratio':>12}{'cpu ratio':>12}   (medians of rounds)")
    for kind, seconds in times.items():
        if seconds:
            walls, processors = zip(*seconds, strict=True)
            ratios = [
                statistics.median(value / own[which] for value, own in zip(column, times["ours"], strict=False))
                for which, column in enumerate((walls, processors))
            ]
            medians = f"{statistics.median(walls):>10.2f}{statistics.median(processors):>10.2f}"
            print(f"{kind:8}{len(seconds):>8}{medians}{ratios[0]:>12.2f}{ratios[1]:>12.2f}")
    print(f"PEFT's numbers differ from ours by at most {max(errors):.1e}, relatively")


def whole(model, folder: Path) -> None:
    model.save_pretrained(folder / "model")
    size = (folder / "model" / "model.safetensors").stat().st_size / 2**20
    cache, selection = KappaCache(folder / "cache"), Selection()
    for label in ("first", "cached"):
        source = CheckpointSource(str(folder / "model"))
        seconds, *_ = timed(lambda: analysis.analyze(source, selection.candidate, cache, progress=False))  # noqa: B023
        print(f"{label} run on the file of {size:.0f} MiB: {seconds:.2f} s")
    command = [
        sys.executable,
        "-m",
        "trl_entropy.cli",
        "kappa",
        str(folder / "model"),
        "--cache",
        str(folder / "cache"),
    ]
    seconds, *_ = timed(lambda: subprocess.run(command, check=True, capture_output=True))
    print(f"`trl-entropy kappa MODEL`, cached, start of Python included: {seconds:.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(layers=6, hidden=1024, vocabulary=16512, full=2, threads=0).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    logging.disable_progress_bar()
    model = build_model(options)
    if options.threads:  # on both sides; by default ours uses the free cores, and PEFT torch's number
        analysis.available_cores = lambda: options.threads
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(options.threads or None):
        rounds(model, options)
        whole(model, Path(folder))


if __name__ == "__main__":
    main()
