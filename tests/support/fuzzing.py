# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Properties of functions, searched for a counterexample; and the inputs that a forward can hand to them.

Log-probabilities run down to -1e4, where bfloat16 logits of a broken model may put them, entropies up to 13 nats, that
of 400 thousand equal tokens, and advantages up to a million, those of unscaled rewards.
"""

from collections.abc import Callable
from dataclasses import replace
from types import FunctionType

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.tensors import make_tokens


# Part of every search, because code like this breaks on them.
LOGPS, ENTROPIES, ADVANTAGES = (-1e4, 0.0), (0.0, 13.0), (-1e6, 1e6)
SPECIAL = {LOGPS: [0.0, -1e-7, -88.0, -104.0], ENTROPIES: [0.0, 1e-7], ADVANTAGES: [0.0, 1.0, -1.0, 1e-30]}
ANY = (-1.7e38, 1.7e38)
SHARES = st.floats(1e-6, 1.0)
GARBAGE = [0.0, -7.0, 1e30, -1e30]

PROPERTIES: list[Callable] = []
COVERED: set[FunctionType] = set()


def covers(*functions: FunctionType) -> Callable[[Callable], Callable]:
    """Registers a property, which takes a `draw`, and the functions of the package that it holds to something."""

    def register(check: Callable) -> Callable:
        PROPERTIES.append(check)
        COVERED.update(functions)
        return check

    return register


def search(check: Callable, examples: int) -> None:
    """Looks for a counterexample, the same way each time. Draws are small, so none is shrunk, which is slow."""

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(st.data())
    def holds(data):
        check(data.draw)

    holds()


def floats(bounds: tuple[float, float]) -> st.SearchStrategy[float]:
    plain = st.floats(*(torch.tensor(bound, dtype=torch.float32).item() for bound in bounds), width=32)
    return st.one_of(st.sampled_from(SPECIAL[bounds]), plain) if bounds in SPECIAL else plain


def draw_shape(draw: Callable) -> tuple[int, int]:
    return draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))


def draw_tensor(draw, shape, bounds, dtype=torch.float32) -> torch.Tensor:
    count = shape[0] * shape[1]
    return torch.tensor(draw(st.lists(floats(bounds), min_size=count, max_size=count)), dtype=dtype).view(shape)


def draw_flags(draw, shape) -> torch.Tensor:
    """(B, T) bool, all of one value in a share of the draws."""
    count = shape[0] * shape[1]
    lists = st.lists(st.booleans(), min_size=count, max_size=count)
    return torch.tensor(draw(st.one_of(lists, st.just([False] * count), st.just([True] * count)))).view(shape)


def spoiled(draw, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`values` with other values outside the mask."""
    return values.masked_fill(~mask, draw(st.sampled_from(GARBAGE)))


def finite_gradients(value: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of the sum of `value`. Checks that both are finite."""
    assert value.isfinite().all(), value
    gradients = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients), gradients
    return gradients


def draw_tokens(draw, dtype=torch.float32, **extra):
    """A `TokenBatch` as a forward may give it, with ratios of 0 and infinity among others."""
    shape = draw_shape(draw)

    def of(bounds):
        return draw_tensor(draw, shape, bounds, dtype)

    logps, entropy = of(LOGPS), of(ENTROPIES)
    old_logps = logps.clone() if draw(st.booleans()) else of(LOGPS)
    advantages = of(ADVANTAGES)
    if draw(st.booleans()):  # as the rewards leave them: one value for each sequence
        advantages = advantages[:, :1].expand(shape)
    probability, other = logps.exp(), of(LOGPS)
    fields = dict(
        sum_sq_probs=probability.square(),
        sum_sq_probs_log_probs=probability.square() * logps,
        nucleus_entropy=of(ENTROPIES),
        top_logps=torch.stack([torch.maximum(logps, other), torch.minimum(logps, other)], -1),
        old_second_logps=of(LOGPS),
        old_entropy=of(ENTROPIES),
        rewards=of((-1.0, 1.0))[:, 0],
        on_policy=bool((logps == old_logps).all()),
    )
    tokens = make_tokens(logps, old_logps, advantages, entropy, draw_flags(draw, shape), **{**fields, **extra})
    tensors = {
        name: value.to(dtype)
        for name, value in vars(tokens).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return replace(tokens, **tensors)
