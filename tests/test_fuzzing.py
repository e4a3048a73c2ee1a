# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every pure function gives finite values and gradients for finite inputs, and does not look outside its mask."""

import inspect
import math
import sys
from dataclasses import field, fields, make_dataclass, replace

import pytest
import torch
from hypothesis import strategies as st
from support import cases, fuzzing
from support.fuzzing import (
    ADVANTAGES,
    ANY,
    ENTROPIES,
    LOGPS,
    SHARES,
    covers,
    draw_flags,
    draw_shape,
    draw_tensor,
    draw_tokens,
    finite_gradients,
    spoiled,
)
from support.registry import TESTS, covered, load, required, set_states, settings_of
from support.tiny import LOSS_TYPES

from trl_entropy import functional, ratios, settings
from trl_entropy.methods import METHODS, base, groups, prompt_templates, tip


for path in sorted(TESTS.glob("test_*.py")):
    load(path)  # which registers the properties of the functions of methods


# functional.py


@covers(functional.masked_mean, functional.masked_mean_and_std, functional.masked_max)
def masked_statistics(draw):
    shape = draw_shape(draw)
    values, mask = draw_tensor(draw, shape, ANY), draw_flags(draw, shape)
    leaf = values.clone().requires_grad_()
    mean, std = functional.masked_mean_and_std(leaf, mask)
    finite_gradients(functional.masked_mean(leaf, mask), leaf)
    other = spoiled(draw, values, mask)
    assert functional.masked_mean_and_std(other, mask) == (mean, std) and std.isfinite() and std >= 0
    assert functional.masked_max(other, mask) == functional.masked_max(values, mask)
    if mask.any():
        valid = values[mask].double()
        assert valid.min() - 1e-9 * valid.abs().max() <= mean <= valid.max() + 1e-9 * valid.abs().max()
        assert functional.masked_max(values, mask) == valid.max()


@covers(functional.centered_product)
def covariances(draw):
    shape = draw_shape(draw)
    logps, advantages, mask = (
        draw_tensor(draw, shape, LOGPS),
        draw_tensor(draw, shape, ADVANTAGES),
        draw_flags(draw, shape),
    )
    found = functional.centered_product(logps, advantages, mask)
    assert found.isfinite().all() and (found[~mask] == 0).all()
    other = functional.centered_product(spoiled(draw, logps, mask), spoiled(draw, advantages, mask), mask)
    assert torch.equal(found, other)


@covers(functional.row_means, functional.run_counts)
def rows(draw):
    shape = draw_shape(draw)
    values, mask = draw_tensor(draw, shape, (-1e30, 1e30)), draw_flags(draw, shape)
    found = functional.row_means(spoiled(draw, values, mask), mask)
    runs = functional.run_counts(mask)
    for row in range(shape[0]):
        own, flags = values[row][mask[row]], mask[row].tolist()
        bounds = (own.min(), own.max()) if len(own) else (0, 0)
        assert bounds[0] - 1e-5 * abs(bounds[0]) <= found[row] <= bounds[1] + 1e-5 * abs(bounds[1])
        assert runs[row] == len("".join("x" if flag else " " for flag in flags).split())


@covers(functional.smallest_ratio)
def smallest_ratios(draw):
    count = draw(st.integers(1, 10**7))
    found = functional.smallest_ratio(count)
    assert found * count * (1 + 1e-12) >= 1 and found == float(f"{found:.3g}")
    assert (found - 0.011 * found) * count < 1


@covers(functional.top_count_mask, functional.scatter_valid, functional.ratio_count)
def top_counts(draw):
    shape, share = draw_shape(draw), draw(SHARES)
    values, mask = draw_tensor(draw, shape, ANY), draw_flags(draw, shape)
    found = functional.top_count_mask(spoiled(draw, values, mask), mask, share)
    count = int(mask.sum())
    assert found.sum() == functional.ratio_count(share, count) <= count and not (found & ~mask).any()
    assert count == 0 or abs(int(found.sum()) - max(share * count, 1)) < 1
    if 0 < found.sum() < count:
        assert values[found].min() >= values[mask & ~found].max()
    flags = draw_flags(draw, (1, max(count, 1))).flatten()[:count]
    assert torch.equal(functional.scatter_valid(flags, mask)[mask], flags)


@covers(functional.quantiles, functional.row_quantiles)
def quantiles_lie_between_values(draw):
    shape, probability = draw_shape(draw), draw(st.floats(0, 1))
    values, mask = draw_tensor(draw, shape, (-1e30, 1e30)), draw_flags(draw, shape)
    found = functional.row_quantiles(spoiled(draw, values, mask), mask, probability)
    for row, quantile in enumerate(found[:, 0]):
        own = values[row][mask[row]]
        assert quantile == math.inf if not len(own) else own.min() <= quantile <= own.max()
        (other,) = functional.quantiles(own, (probability,))
        assert other.isnan() if not len(own) else own.min() <= other <= own.max()


@covers(functional.aggregate)
def reduced_losses(draw):
    shape, loss_type = draw_shape(draw), draw(st.sampled_from(LOSS_TYPES))
    terms, mask = draw_tensor(draw, shape, (-1e9, 1e9)), draw_flags(draw, shape)
    items = mask.sum().clamp(min=1)
    leaf = spoiled(draw, terms, mask).requires_grad_()
    found = functional.aggregate(leaf, mask, loss_type, items, 4)
    assert found == functional.aggregate(terms, mask, loss_type, items, 4)
    (gradient,) = finite_gradients(found, leaf)
    assert (gradient[~mask] == 0).all() and (gradient[mask] > 0).all()


@covers(functional.discriminator, functional.mean_discriminator)
def discriminators(draw):
    shape = draw_shape(draw)
    logps, entropy = draw_tensor(draw, shape, LOGPS).requires_grad_(), draw_tensor(draw, shape, ENTROPIES)
    finite_gradients(functional.discriminator(logps, entropy.requires_grad_()), logps, entropy)
    squares = draw_tensor(draw, shape, (0.0, 1.0))
    assert functional.mean_discriminator(entropy, squares, squares * logps).isfinite().all()


@covers(functional.accumulator_dtype)
def accumulators(draw):
    assert functional.accumulator_dtype(torch.device(draw(st.sampled_from(["cpu", "cuda", "xpu"])))) == torch.float64
    assert functional.accumulator_dtype(torch.device("mps")) == torch.float32


@covers(
    settings.checked,
    settings.one_of,
    settings.one_reward,
    settings.ratio,
    settings.non_negative,
    settings.flag,
    settings.name_or_none,
    settings.whole,
)
def fields_are_read_or_refused(draw):
    """Any value of a field is returned, or refused in one line that names it."""
    value = draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
    )
    config = type("Config", (), {"field": value})
    names = draw(st.lists(st.text("ab", max_size=1), max_size=2))
    try:
        assert settings.one_reward(value, "field", names) in names
    except ValueError as error:
        assert str(error).startswith("`field` must be") and repr(value) in str(error) and value not in names
    readers = [
        settings.ratio,
        settings.non_negative,
        settings.flag,
        settings.name_or_none,
        lambda *args: settings.whole(*args, 0),
        lambda *args: settings.whole(*args, 1, optional=True),
        lambda *args: settings.one_of(*args, "a", "b"),
    ]
    for read in readers:
        try:
            assert read(config, "field") is value
        except ValueError as error:
            assert str(error).startswith("`field` must be") and repr(value) in str(error)


@covers(settings.names_of)
def lists_of_names_are_read_or_refused(draw):
    """A list of different known names is returned. Anything else is refused in one line that names the field."""
    value = draw(st.none() | st.text("ab", max_size=2) | st.lists(st.sampled_from("abcd") | st.integers(), max_size=3))
    config = type("Config", (), {"field": value})
    good = isinstance(value, list) and set(value) <= set("abc") and len(set(value)) == len(value)
    try:
        assert settings.names_of(config, "field", ("a", "b", "c")) is value and good
    except ValueError as error:
        assert not good and str(error).startswith("`field` ") and "\n" not in str(error)


@covers(settings.nearest_name, settings.did_you_mean)
def near_names(draw):
    """A hint is a known name, and a known name is its own nearest."""
    known = draw(st.lists(st.text("ab_", max_size=3), max_size=3, unique=True))
    name = draw(st.none() | st.integers() | st.text("AaBb-_", max_size=3) | st.sampled_from(known or [""]))
    ignore_case = draw(st.booleans())
    near = settings.nearest_name(name, known, ignore_case)
    assert near is None or near in known
    assert near == name or name not in known
    assert settings.did_you_mean(name, known, ignore_case) == ("" if near is None else f" Did you mean {near!r}?")


@covers(settings.default_of, settings.fields_of)
def defaults_of_fields(draw):
    """Fields of a prefix in their order, each with the default that an instance has."""
    names = draw(st.lists(st.sampled_from(["a", "a_x", "a_y", "ab_x", "b_a_x"]), unique=True))
    values = draw(st.lists(st.none() | st.integers() | st.text(max_size=2), min_size=5, max_size=5))
    plain = [(name, object, field(default=value)) for name, value in zip(names, values, strict=False)]
    config = make_dataclass("Config", [*plain, ("a_list", list, field(default_factory=lambda: list(values)))])
    found = settings.fields_of("a", config)
    assert [one.name for one in found] == [name for name in [*names, "a_list"] if name.startswith("a_")]
    assert settings.fields_of("a", config()) == found
    assert all(settings.default_of(one) == getattr(config(), one.name) for one in fields(config))


@pytest.mark.parametrize("check", fuzzing.PROPERTIES, ids=lambda check: check.__name__)
def test_property(check):
    fuzzing.search(check, 12)


@pytest.mark.slow
@pytest.mark.parametrize("check", fuzzing.PROPERTIES, ids=lambda check: check.__name__)
def test_property_with_many_examples(check):
    fuzzing.search(check, 200)


def test_every_pure_function_is_searched():
    modules = [
        functional,
        *{sys.modules[method.__module__] for method in METHODS.values()},
        tip,
        base,
        groups,
        settings,
        prompt_templates,
        ratios,
    ]
    found = {
        function
        for module in modules
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not function.__name__.startswith("_")
    }
    assert len(found) > 40
    missing = sorted(f"{function.__module__}.{function.__name__}" for function in found - fuzzing.COVERED)
    assert not missing, f"No property `@covers` {', '.join(missing)}: write one in the tests of its module."
    assert fuzzing.COVERED <= found


# Whole methods


VARIANTS = [(name, required([name]) | variant) for name in covered() for variant in ({}, *settings_of(name).variants)]


def check_method(draw, name, settings):
    """Advantages, term and gradient are finite, and tokens outside the mask change none of them."""
    tokens = draw_tokens(draw)
    method = cases.build(name, **settings)
    set_states([method])
    found = cases.outcome(method, tokens)
    for result in found:
        assert result[tokens.mask].isfinite().all(), result
    out = ~tokens.mask
    spoilt = replace(
        tokens,
        advantages=tokens.advantages.masked_fill(out, 1e6),
        logps=tokens.logps.masked_fill(out, -3.0),
        entropy=tokens.entropy.masked_fill(out, 12.0),
        nucleus_entropy=tokens.nucleus_entropy.masked_fill(out, 12.0),
        top_logps=tokens.top_logps.masked_fill(out.unsqueeze(-1), -0.5),
        ratio=tokens.ratio.masked_fill(out, 40.0),
    )
    for result, other in zip(found, cases.outcome(method, spoilt), strict=True):
        torch.testing.assert_close(other[tokens.mask], result[tokens.mask])


VARIANT_IDS = [f"{name}-{number}" for number, (name, _) in enumerate(VARIANTS)]


@pytest.mark.parametrize("name, settings", VARIANTS, ids=VARIANT_IDS)
def test_method(name, settings):
    fuzzing.search(lambda draw: check_method(draw, name, settings), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name, settings", VARIANTS, ids=VARIANT_IDS)
def test_method_with_many_examples(name, settings):
    fuzzing.search(lambda draw: check_method(draw, name, settings), 100)
