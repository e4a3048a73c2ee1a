# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of `gpu_check.py`: optimizer steps with each method against stock TRL, and KappaTune's condition numbers."""

import argparse
import copy
import gc
import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kappa
import overhead
import torch
from distillation import now
from gpu_heads import measured_peak, memory_cells
from gpu_report import Part, alternate, median_and_ratio
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from trl_entropy import METHODS, EntropyGRPOConfig, EntropyGRPOTrainer
from trl_entropy.head import function
from trl_entropy.kappa import analysis
from trl_entropy.kappa.inventory import layers_of
from trl_entropy.kappa.sources import LiveSource


STOCK = (GRPOTrainer, GRPOConfig)
OURS = (EntropyGRPOTrainer, EntropyGRPOConfig)
QUANTILE = {"top_entropy_quantile": 0.2}
# By row: trainer and config, their fields, and the fields of the stock trainer that it is compared with
ROWS: dict[str, tuple[tuple[type, type], dict[str, Any], dict[str, Any]]] = {
    "stock, again": (STOCK, {}, {}),
    "no method": (OURS, {}, {}),
    "no method, TRL's head": (OURS, {"fused_head": False}, {}),
    "stock, TRL's 80/20": (STOCK, QUANTILE, {}),
    "no method, 80/20 on both sides": (OURS, QUANTILE, QUANTILE),
    **{name: (OURS, overhead.fields_of(name), {}) for name in METHODS},
}


def build_model(sizes: argparse.Namespace) -> PreTrainedModel:
    """Random weights of Qwen2.5-0.5B's shapes, or of those of `sizes`."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.hidden // 64,
        num_key_value_heads=max(1, sizes.hidden // 448),
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    with torch.device(sizes.device):
        model = Qwen2ForCausalLM(config)
    spread = 1.05 * math.sqrt(2 * math.log(sizes.vocab))  # of logits: above 1, few words hold most of the probability
    with torch.no_grad():
        model.model.norm.weight.fill_(spread / config.initializer_range / sizes.hidden**0.5)
    return model


class Step:
    """A trainer of a copy of the model, ready to make optimizer steps on given batches."""

    def __init__(self, kind: tuple[type, type], model: PreTrainedModel, options: argparse.Namespace, **fields: Any):
        quantile = fields.pop("top_entropy_quantile", 1.0)
        self.options = argparse.Namespace(**vars(options) | {"quantile": quantile})
        fields |= {"bf16": True, "use_cpu": options.device == "cpu"}
        own = copy.deepcopy(model)
        self.trainer = overhead.build_trainer(*kind, self.options, options.folder, own, **fields)
        self.model = self.trainer.model_wrapped = self.trainer.accelerator.prepare(self.trainer.model)
        self.trainer.optimizer = self.trainer.accelerator.prepare(self.trainer.optimizer)
        self.model.train()

    def __call__(self, batch: dict[str, Tensor]) -> tuple[float]:
        """Loss, backward, clipping of the gradient, optimizer -> seconds."""
        accelerator, optimizer = self.trainer.accelerator, self.trainer.optimizer
        started = now(self.options.device)
        accelerator.backward(self.trainer.compute_loss(self.model, batch))
        accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return (now(self.options.device) - started,)


@contextmanager
def recorded_shares() -> Iterator[list[float]]:
    """The share of live tokens in each backward of our head."""
    original, shares = function.with_company, []

    def recording(wanted: Tensor) -> Tensor:
        shares.append(wanted.float().mean().item())
        return original(wanted)

    function.with_company = recording
    try:
        yield shares
    finally:
        function.with_company = original


def steps(part: Part, sizes: argparse.Namespace) -> None:
    """`overhead.py` with a real model's shapes: each trainer in turn beside a stock one, on the same batch."""
    part.plan(ROWS)
    model = build_model(sizes)
    count = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        options = argparse.Namespace(
            **dict(rows=sizes.rows, length=sizes.tokens // sizes.rows, vocabulary=sizes.vocab, device=sizes.device),
            folder=folder,
        )
        batch = {name: tensor.to(sizes.device) for name, tensor in overhead.random_batch(options).items()}
        stock = {(): Step(STOCK, model, options)}
        batch = overhead.with_old_policy(batch, stock[()].trainer)
        valid = batch["completion_mask"].bool()
        entropy = batch["old_entropies"][valid].mean().item()
        part.note(
            f"{count / 1e6:.0f} M random weights in float32, bfloat16 autocast, no gradient checkpointing. "
            f"{sizes.rows} completions of at most {options.length} random tokens, {int(valid.sum())} valid, mean "
            f"entropy {entropy:.2f} nats. A step is loss, backward, clipping of the gradient and AdamW, without "
            "generation. Ratios are to the stock trainer beside it, on the same batch. `live` is the share of tokens "
            "that a gradient reaches, in our head."
        )
        for name, (kind, fields, base) in ROWS.items():
            key = tuple(base.items())
            if key not in stock:
                stock[key] = Step(STOCK, model, options, **base)
            try:
                step = Step(kind, model, options, **fields)
            except ValueError as error:  # a method that acts on rollouts only may need tools
                part.note(f"{name}: not measured. {error}")
                continue
            measure_step(part, name, step, stock[key], batch, sizes)
            del step
            gc.collect()  # trainers refer to themselves
            if sizes.device == "cuda":
                torch.cuda.empty_cache()


def measure_step(
    part: Part, name: str, step: Step, stock: Step, batch: dict[str, Tensor], sizes: argparse.Namespace
) -> None:
    with recorded_shares() as shares:
        step(batch), stock(batch)  # allocates the optimizer's state
    peaks = {
        key: measured_peak(part, key, lambda one=one: one(batch), sizes) for key, one in ((name, step), ("", stock))
    }
    runs = {name: lambda: step(batch), "": lambda: stock(batch)}
    times = alternate(runs, sizes.rounds, part)
    milliseconds, ratio = median_and_ratio(times, name, "")
    part.row(
        name,
        ms=milliseconds,
        **{"stock ms": median_and_ratio(times, "", "")[0]},
        ratio=ratio,
        live=shares[0] if shares else None,
        rounds=len(times[name]),
        **memory_cells(peaks, name, ""),
    )


def condition_numbers(part: Part, sizes: argparse.Namespace) -> None:
    """`kappa.py`: KappaTune's analysis against PEFT's selector and full decompositions, layer by layer."""
    part.plan(["ours", "PEFT's selector", "full decomposition"])
    options = argparse.Namespace(vocabulary=sizes.kappa_vocab, hidden=sizes.kappa_hidden, layers=sizes.kappa_layers)
    model = kappa.build_model(options).to(sizes.device)
    part.note(
        f"Decoder layers of width {options.hidden} (Qwen3-0.6B: 1024), float32. Seconds per layer, median over "
        f"{options.layers} layers, ratios of medians to ours. `difference` is the largest relative one of a condition "
        "number from that of an SVD in float64, over the first layer."
    )
    layers = model.model.layers
    torch.linalg.svdvals(torch.eye(8, device=sizes.device))  # loads the library
    torch.linalg.eigvalsh(torch.eye(8, device=sizes.device, dtype=torch.float64))
    exact = {}
    for name, module in layers[0].named_modules():
        if isinstance(module, torch.nn.Linear):
            values = torch.linalg.svdvals(module.weight.detach().double().cpu())
            exact[name] = (values[0] / values[-1]).item()
    source, listed = LiveSource(model), layers_of(model)

    def own(index: int) -> dict[str, float]:
        prefix = f"model.layers.{index}."
        done = analysis.compute(source, [one for one in listed if one.name.startswith(prefix)], progress=False)
        return {one.name.removeprefix(prefix): one.kappa() for one, _ in done}

    sides = {
        "ours": own,
        "PEFT's selector": lambda index: kappa.peft_numbers(layers[index]),
        "full decomposition": lambda index: kappa.full_decomposition(layers[index]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    errors = {}
    for index in range(options.layers):
        for name in list(sides)[:: 1 if index % 2 == 0 else -1]:
            if name == "full decomposition" and index > 1:
                continue  # slow
            started = now(sizes.device)
            found = sides[name](index)
            seconds[name].append(now(sizes.device) - started)
            if index == 0:
                errors[name] = kappa.difference(found, exact)
        if part.left() < 2 * sum(values[-1] for values in seconds.values()):
            break
    base = statistics.median(seconds["ours"])
    for name, values in seconds.items():
        median = statistics.median(values)
        error, limit = errors[name], 1e-6 if name == "ours" else None
        checked = {} if limit is None else {"limit": limit, "ok": error <= limit}
        part.row(name, seconds=median, ratio=median / base, layers=len(values), difference=error, **checked)
