# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parts of `gpu_check.py`: the fused head and the divergence, their numbers and their speed."""

import argparse
from collections.abc import Callable
from typing import Any

import distillation
import head
import torch
from gpu_report import Part, alternate, median_and_ratio
from torch import Tensor

from trl_entropy.head import sweeps
from trl_entropy.head.divergence import Head, divergences
from trl_entropy.head.function import TokenStatistics, token_statistics
from trl_entropy.head.spec import HeadSpec
from trl_entropy.head.sweeps import Projection, backend_for, token_slices


ALL = HeadSpec(second_moments=True, second_temperature=1.2, top_p=0.8, top_k=3, temperature=0.9)
SPECS = {
    "log-probability, entropy": HeadSpec(),
    "all statistics": ALL,
    "softcap": HeadSpec(logit_scale=0.7, softcap=20.0, top_p=0.8, include_crossing=True),
}
# Largest errors in nats against float64 from the same logits. Sums of 150,000 float32 terms; bins for the nucleus.
FORWARD_TOLERANCE = {"nucleus_entropy": 2e-4}
FORWARD_DEFAULT = 3e-5
# Largest ‖g - g64‖ / ‖g64‖: gradients of logits are rounded to the dtype before the products
GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
# Largest errors relative to 1 + the value: tensor cores add up products of bfloat16 less precisely than in float32
DIVERGENCE_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-3}
# Mass of the nucleus' boundary that may be assigned wrongly, `trl_entropy.head.nucleus.BOUNDARY_TOLERANCE`
BOUNDARY = 1e-3


def kernels(part: Part, sizes: argparse.Namespace) -> None:
    """The head's Triton kernels and the divergence against float64 on random hidden states.

    On a CPU Triton's interpreter runs the kernels, with small blocks.
    """
    if sizes.device == "cpu":
        from trl_entropy.head import triton_tiles

        sweeps.backend_for, triton_tiles.BLOCK = lambda *_: triton_tiles, 32
    part.note(
        "Errors of our head are against float64 from the same rounded logits. `of rounding` is the error against "
        "float64 from unrounded logits; `TRL` is that of TRL's head. Gradients: ‖g - g64‖ / ‖g64‖."
    )
    dtypes = ("bfloat16", "float32")
    part.plan(f"{dtype}, {name}, gradient of weight" for dtype in dtypes for name in SPECS)
    part.plan(f"{dtype}, divergence, gradient of hidden" for dtype in dtypes)
    try:
        for dtype in dtypes:
            data = head.example(settings(sizes, dtype, sizes.checked_tokens, sizes.checked_vocab), sizes.widths[0])
            used = sweeps.backend_for(data[0].device, data[0].dtype).__name__
            if not used.endswith("triton_tiles"):
                raise RuntimeError(f"The head folds its tiles in {used}, not in Triton.")
            for name, spec in SPECS.items():
                check_statistics(part, f"{dtype}, {name}", data[:3], spec, dtype)
            check_divergences(part, f"{dtype}, divergence", data, dtype)
    finally:
        sweeps.backend_for = backend_for


def settings(sizes: argparse.Namespace, dtype: str, tokens: int, vocab: int) -> argparse.Namespace:
    """The arguments of `head.example`: a fifth of the tokens have several likely words."""
    return argparse.Namespace(dtype=dtype, tokens=tokens, vocab=vocab, device=sizes.device, open_share=0.2, bulk=0.02)


def check_statistics(part: Part, label: str, data: tuple[Tensor, ...], spec: HeadSpec, dtype: str) -> None:
    hidden, weight, targets = data
    inputs = (hidden, weight)
    found = token_statistics(hidden, weight, None, targets, spec)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = wide[0] @ wide[1].t()
    # The values of the rounded logits, with the gradient of the exact ones
    rounded = exact + (tile_logits(hidden, weight, spec) - exact).detach()
    expected, unrounded = reference(rounded, targets, spec), reference(exact.detach(), targets, spec)
    stock = None
    if spec == HeadSpec():
        stock = dict(zip(("log_probs", "entropy"), head.trl_head(hidden, weight, targets), strict=False))
    same_nucleus = torch.ones_like(targets, dtype=torch.bool)
    for name, values in found._asdict().items():
        if values is None:
            continue
        errors = (values.detach() - expected[name]).abs()
        if name == "nucleus_entropy":
            same_nucleus = errors <= FORWARD_TOLERANCE[name]
            low = expected["nucleus_entropy_below"]  # of a nucleus whose mass is lower by what bins may miss
            errors = torch.where(values >= low, torch.minimum(errors, (values - expected[name]).clamp(min=0)), errors)
        error, limit = errors.max().item(), FORWARD_TOLERANCE.get(name, FORWARD_DEFAULT)
        part.row(
            f"{label}, {name}",
            error=error,
            limit=limit,
            ok=error <= limit,
            **{"of rounding": (values.detach() - unrounded[name]).abs().max().item()},
            TRL=(stock[name].detach() - unrounded[name]).abs().max().item() if stock and name in stock else None,
        )
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(len(targets), generator=generator) * (torch.arange(len(targets)) % 2)  # half the rows live
    weights = weights.to(hidden.device)
    grads = torch.autograd.grad(objective(found, weights, same_nucleus), inputs)
    truth = torch.autograd.grad(objective(TokenStatistics(*picked(expected)), weights, same_nucleus), wide)
    theirs = None
    if stock:
        theirs = torch.autograd.grad(objective(TokenStatistics(**stock), weights, same_nucleus), inputs)
    for index, name in enumerate(("hidden", "weight")):
        error, limit = relative(grads[index], truth[index]), GRADIENT_TOLERANCE[dtype]
        cells = {"TRL": relative(theirs[index], truth[index]) if theirs else None}
        part.row(f"{label}, gradient of {name}", error=error, limit=limit, ok=error <= limit, **cells)


def tile_logits(hidden: Tensor, weight: Tensor, spec: HeadSpec) -> Tensor:
    """(N, V) the raw logits that the head computes in the dtype of `hidden`, in float64."""
    projection = Projection(weight.detach(), None, hidden.dtype, spec, token_slices(len(hidden), spec.token_tile))
    return torch.cat([tile.double() for _, _, tile in projection.tiles(hidden.detach())], -1)


def reference(raw: Tensor, targets: Tensor, spec: HeadSpec) -> dict[str, Tensor]:
    """The statistics of `TokenStatistics` from raw logits (N, V) in float64, written out in full."""
    z = raw * spec.logit_scale
    if spec.softcap is not None:
        z = spec.softcap * torch.tanh(z / spec.softcap)
    log_p = (z / spec.temperature).log_softmax(-1)
    p = log_p.exp()

    def of_target(values: Tensor) -> Tensor:
        return values.gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    found = {"log_probs": of_target(log_p), "entropy": -(p * log_p).sum(-1)}
    found |= {"sum_sq_probs": (p * p).sum(-1), "sum_sq_probs_log_probs": (p * p * log_p).sum(-1)}
    if spec.second_temperature is not None:
        found["second_log_probs"] = of_target((z / spec.second_temperature).log_softmax(-1))
    if spec.top_p is not None:
        found["nucleus_entropy"] = nucleus_entropy(log_p, spec.top_p, spec.include_crossing)
        found["nucleus_entropy_below"] = nucleus_entropy(log_p.detach(), spec.top_p - BOUNDARY, spec.include_crossing)
    if spec.top_k is not None:
        found["top_log_probs"] = log_p.topk(spec.top_k).values
    return found


def nucleus_entropy(log_p: Tensor, top_p: float, include: bool) -> Tensor:
    """(N, V) -> (N,) entropy of the nucleus. Tokens of equal probability are in it or out of it together."""
    ordered, order = log_p.sort(-1, descending=True)
    falling = -ordered.detach()
    mass = torch.nn.functional.pad(falling.neg().exp().cumsum(-1), (1, 0))
    # Of each token: how many are more likely, or at least as likely
    count = torch.searchsorted(falling, falling, right=not include)
    inside = mass.gather(-1, count) < top_p
    share = torch.where(inside, ordered, -torch.inf).logsumexp(-1, keepdim=True)
    log_q = torch.where(inside, ordered - share, 0.0)
    entropy = -torch.where(inside, log_q.exp() * log_q, 0.0).sum(-1)
    return torch.where(inside.sum(-1) > 1, entropy, 0.0)


def picked(expected: dict[str, Tensor]) -> list[Tensor | None]:
    return [expected.get(name) for name in TokenStatistics._fields]


def objective(found: TokenStatistics, weights: Tensor, same_nucleus: Tensor) -> Tensor:
    """A loss through every differentiable output."""
    total = (weights * (found.log_probs + 0.5 * found.entropy)).sum()
    if found.nucleus_entropy is not None:
        total = total + (0.3 * weights * same_nucleus * found.nucleus_entropy).sum()
    if found.top_log_probs is not None:
        total = total + 0.1 * (weights * found.top_log_probs.sum(-1)).sum()
    return total


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def check_divergences(part: Part, label: str, data: tuple[Tensor, ...], dtype: str) -> None:
    """Entropy, both KLs and the gradient of the reverse KL, of a student and a teacher that is near it."""
    hidden, weight, _, order = data
    teacher = (hidden.detach() + 0.1 * hidden.detach()[order]).contiguous()
    found = divergences(Head(hidden, weight, None, teacher, weight.detach(), None, 1.0), live_rows=True)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    log_p = (wide[0] @ wide[1].t()).log_softmax(-1)
    log_q = (teacher.double() @ wide[1].detach().t()).log_softmax(-1)
    expected = {
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "reverse": (log_p.exp() * (log_p - log_q)).sum(-1),
        "forward": (log_q.exp() * (log_q - log_p)).sum(-1),
    }
    for name, values in expected.items():
        error = ((getattr(found, name).detach() - values).abs() / (1 + values)).max().item()
        limit = DIVERGENCE_TOLERANCE[dtype]
        part.row(f"{label}, {name}", error=error, limit=limit, ok=error <= limit)
    weights = torch.linspace(-1, 1, len(hidden), device=hidden.device) * (torch.arange(len(hidden)) % 2).to(hidden)
    grads = torch.autograd.grad((weights * found.loss).sum(), (hidden, weight))
    truth = torch.autograd.grad((weights * expected["reverse"]).sum(), wide)
    for name, own, other in zip(("weight", "hidden"), grads[::-1], truth[::-1], strict=True):
        error, limit = relative(own, other), GRADIENT_TOLERANCE[dtype]
        part.row(f"{label}, gradient of {name}", error=error, limit=limit, ok=error <= limit)


# Speed


def speed(part: Part, sizes: argparse.Namespace, width: int) -> None:
    """`head.py`: TRL's head, ours with 100 to 10 % live tokens and with each statistic, and full logits."""
    variants = head.variants()
    part.plan(variant.name for variant in variants)
    part.note(
        f"{sizes.tokens} tokens, vocabulary {sizes.vocab}, hidden {width}, {sizes.dtype}. Ratios are to TRL's head, "
        "medians over alternated rounds. Peak memory is that of forward and backward without the inputs."
    )
    data = head.example(settings(sizes, sizes.dtype, sizes.tokens, sizes.vocab), width)
    grads = torch.randn(sizes.tokens, device=sizes.device)
    fitting, peaks = {}, {}
    for variant in variants:
        data[0].grad = data[1].grad = None
        peaks[variant.name] = measured_peak(part, variant.name, lambda v=variant: head.run(v, data, grads), sizes)
        if peaks[variant.name] is not None or sizes.device == "cpu":
            fitting[variant.name] = variant
    runs = {name: lambda v=variant: head.run(v, data, grads) for name, variant in fitting.items()}
    times = alternate(runs, sizes.rounds, part)
    part.note(f"{len(times[head.variants()[0].name])} rounds.")
    base = variants[0].name
    for name, variant in fitting.items():
        forward, ratio = median_and_ratio(times, name, base)
        cells: dict[str, Any] = {"forward ms": forward, "ratio": ratio}
        if variant.backward:
            cells["backward ms"], cells["ratio of backward"] = median_and_ratio(times, name, base, 1)
        part.row(name, **cells, **memory_cells(peaks, name, base))


def measured_peak(part: Part, name: str, run: Callable[[], Any], sizes: argparse.Namespace) -> float | None:
    """MiB that a run allocates at most, beside what was there; `None` on a CPU, or if the memory is not enough.

    Gradients that the run sets must not be there yet.
    """
    if sizes.device == "cpu":
        return None
    one = torch.ones(64, 64, device=sizes.device, dtype=getattr(torch, sizes.dtype))
    torch.mm(one, one)  # so that the workspace of the matrix products is there
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        run()
    except torch.OutOfMemoryError:
        part.note(f"{name}: out of memory.")
        return None
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def memory_cells(peaks: dict[str, float | None], name: str, base: str) -> dict[str, float | None]:
    peak, other = peaks[name], peaks[base]
    return {"peak MiB": peak, "ratio of peak": peak / other if peak is not None and other else None}


def distillation_heads(part: Part, sizes: argparse.Namespace) -> None:
    """`distillation.py`: forward and backward of the divergence, on all tokens and on those that TIP keeps."""
    options = argparse.Namespace(
        rows=sizes.rows,
        length=sizes.tokens // sizes.rows,
        hidden=sizes.student,
        teacher_hidden=sizes.teacher,
        vocabulary=sizes.vocab,
        device=sizes.device,
        dtype=sizes.dtype,
        beta=1.0,
    )
    runs = {"stock": distillation.heads(options, None)}
    for rule in ("soft_or", "entropy"):
        for ratio in (1.0, 0.5, 0.2, 0.1) if rule == "soft_or" else (0.5, 0.2, 0.1):
            of_rule = argparse.Namespace(**vars(options), rule=rule)
            runs["no selection" if ratio == 1 else f"{rule} {ratio:.0%}"] = distillation.heads(of_rule, ratio)
    part.plan(runs)
    part.note(
        f"{sizes.tokens} tokens, vocabulary {sizes.vocab}, student {sizes.student} wide, teacher {sizes.teacher}, "
        f"{sizes.dtype}, reverse KL. Ratios are to TRL's kernel."
    )
    peaks = {name: measured_peak(part, name, run, sizes) for name, run in runs.items()}

    def timed(run: Callable[[], None]) -> tuple[float]:
        started = distillation.now(sizes.device)
        run()
        return (distillation.now(sizes.device) - started,)

    times = alternate({name: lambda run=run: timed(run) for name, run in runs.items()}, sizes.rounds, part)
    for name in runs:
        milliseconds, ratio = median_and_ratio(times, name, "stock")
        part.row(name, ms=milliseconds, ratio=ratio, **memory_cells(peaks, name, "stock"))
