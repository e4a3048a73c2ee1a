# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Candidates, rankings, budgets, and agreement with PEFT's selector."""

import math

import pytest
import torch
from peft.helpers import KappaTuneSelector
from support.tiny import build_model

from trl_entropy.kappa.analysis import Processes, analyze, schedule
from trl_entropy.kappa.layers import EXPERTS, LINEAR, RANK_DEFICIENT, Layer
from trl_entropy.kappa.report import as_json, table
from trl_entropy.kappa.selection import Selection
from trl_entropy.kappa.sources import LiveSource


def layer(name, kappas, shape=(4, 4), kind=LINEAR):
    kappas = kappas if isinstance(kappas, list) else [kappas]
    states = ["full rank" if math.isfinite(kappa) else RANK_DEFICIENT for kappa in kappas]
    return Layer(name, f"{name}.weight", shape, kind, states, kappas, [1.0] * len(kappas), [0.5] * len(kappas))


def names(selection, layers):
    return [row.name for row in selection.select(layers)]


THREE = [layer("c", math.inf), layer("b", 4.0), layer("a", 3.0)]


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(top_p=0.5), ["a"]),  # one and a half of three
        (dict(top_p=0.7), ["a", "b"]),
        (dict(top_p=1.0), ["a", "b"]),  # never one without full rank
        (dict(num_modules=3), ["a", "b"]),
        (dict(num_modules=1, order="descending"), ["b"]),
        (dict(num_modules=1, exclude=["^a$"]), ["b"]),
        (dict(num_modules=2, include=["b", "c"]), ["b"]),
    ],
)
def test_budget_order_and_patterns(settings, expected):
    assert names(Selection(**settings), THREE) == expected


def test_top_p_counts_parameters_and_takes_no_worse_weight_because_it_is_small():
    layers = [layer("a", 1.0, (4, 4)), layer("b", 2.0, (8, 8)), layer("c", 3.0, (2, 2))]
    assert names(Selection(top_p=80 / 84), layers) == ["a", "b"]
    assert names(Selection(top_p=79 / 84), layers) == ["a"]
    assert names(Selection(), layers) == ["a"]  # 0.2 of 84
    with pytest.raises(
        ValueError, match="`top_p`=0.1 selects nothing: 0.1 of 84 parameters is less than the 16 of `a`"
    ):
        Selection(top_p=0.1).select(layers)


def test_ties_are_broken_by_name_and_the_order_given_does_not_matter():
    layers = [layer(name, 2.0) for name in "dbca"]
    assert names(Selection(num_modules=2), layers) == ["a", "b"]
    assert names(Selection(num_modules=2, order="descending"), layers) == ["a", "b"]
    drawn = names(Selection(num_modules=4, order="random", seed=1), layers)
    assert drawn == names(Selection(num_modules=4, order="random", seed=1), layers[::-1]) != ["a", "b", "c", "d"]
    assert drawn != names(Selection(num_modules=4, order="random", seed=2), layers)


def test_fused_experts_count_by_median_or_mean():
    stack = layer("experts", [4.0, 2.0, 9.0], (3, 4, 4), EXPERTS)
    assert (stack.kappa(), stack.kappa("mean")) == (4.0, 5.0)
    one_bad = layer("experts", [4.0, 2.0, math.inf], (3, 4, 4), EXPERTS)
    assert (one_bad.kappa(), one_bad.kappa("mean")) == (4.0, math.inf)
    rows = [one_bad, layer("linear", 4.5)]
    assert names(Selection(num_modules=1), rows) == ["experts"]
    assert names(Selection(num_modules=2, experts="mean"), rows) == ["linear"]


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(top_p=0.0), "`kappa_top_p` must be a share of the parameters in (0, 1], got 0.0."),
        (dict(top_p=True), "`kappa_top_p` must be a share of the parameters in (0, 1], got True."),
        (dict(top_p="x"), "`kappa_top_p` must be a share of the parameters in (0, 1], got 'x'."),
        (dict(num_modules=0), "`kappa_num_modules` must be an integer above 0, got 0."),
        (dict(num_modules=1.5), "`kappa_num_modules` must be an integer above 0, got 1.5."),
        (dict(top_p=0.1, num_modules=2), "One of `kappa_top_p` and `kappa_num_modules` may be given, got 0.1 and 2."),
        (dict(order="up"), "`kappa_order` must be one of 'ascending', 'descending', 'random', got 'up'."),
        (dict(experts="max"), "`kappa_experts` must be one of 'median', 'mean', got 'max'."),
        (dict(include="q_proj"), "`kappa_include` must be a list of regular expressions, got 'q_proj'."),
        (dict(exclude=["("]), "`kappa_exclude` must be a list of regular expressions, got '(': missing )"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError) as error:
        Selection(**settings, prefix="kappa_")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_no_candidate():
    with pytest.raises(ValueError, match="No weight of full rank is a candidate with `include`"):
        Selection(include=["nothing"]).select(THREE)


def analyzed(model, **settings):
    selection = Selection(**settings)
    return analyze(LiveSource(model), selection.candidate, progress=False), selection


def test_same_ranking_as_peft():
    model = build_model(hidden_size=32, intermediate_size=64)
    layers, selection = analyzed(model, num_modules=14)
    reference = KappaTuneSelector(model, show_progress=False)
    expected = [name for name in reference.get_best_targets(num_modules=15) if name != "lm_head"]
    assert names(selection, layers) == expected and len(expected) == 14
    kappas = {row.name: row.kappa() for row in layers if row.kappas}
    assert kappas == pytest.approx({name: reference._condition_numbers[name] for name in kappas}, rel=1e-4)


def test_embeddings_and_head_are_candidates_only_when_asked_for():
    layers, _ = analyzed(build_model())
    assert {row.name for row in layers if not row.kappas} == {"model.embed_tokens", "lm_head"}
    layers, selection = analyzed(build_model(), include=["lm_head", "embed"], num_modules=2)
    assert {*names(selection, layers)} == {"model.embed_tokens", "lm_head"}


def test_zero_weights_are_reported_and_never_selected():
    model = build_model()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
        model.model.layers[1].mlp.up_proj.weight[1] = model.model.layers[1].mlp.up_proj.weight[0]
        model.model.layers[1].self_attn.v_proj.weight[1] = model.model.layers[1].self_attn.v_proj.weight[0]
    layers, selection = analyzed(model, top_p=1.0)
    zero, deficient = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    chosen = names(selection, layers)
    assert len(chosen) == 12 and not {zero, deficient} & {*chosen}
    lines = {line.split()[0]: line for line in table(layers, chosen, selection).splitlines()}
    assert lines[zero].split()[2:] == ["zero"] and lines[deficient].split()[2:] == ["rank-deficient"]
    assert "12 of 14 modules" in table(layers, chosen, selection)
    rows = {row["name"]: row for row in as_json("m", layers, chosen, selection)["layers"]}
    assert rows[zero]["kappa"] is None and rows[zero]["states"] == ["zero"] and not rows[zero]["selected"]


def test_an_expert_without_full_rank_is_shown():
    stack = layer("experts", [4.0, 2.0, math.inf], (3, 4, 4), EXPERTS)
    stack.states[2] = "zero"
    assert "3x4x4  4 (1 of 3 zero)" in table([stack], [], Selection())
    assert "3x4x4   zero" in table([stack], [], Selection(experts="mean"))


def test_schedule_is_longest_first_and_balanced():
    layers = [layer(str(size), 1.0, (size, size)) for size in (10, 2, 8, 6, 4)]
    shares = schedule(layers, 2)
    assert [[row.name for row in share] for share in shares] == [["10"], ["8", "6", "4", "2"]]
    assert schedule(layers[::-1], 2) == shares
    assert schedule(layers[:1], 3) == [layers[:1], [], []]


def test_processes_share_the_work():
    """Two processes in turn, each with its own share; what they gather is the whole."""
    model, selection = build_model(), Selection()
    parts = []
    for rank in (0, 1):
        analyze(
            LiveSource(model),
            selection.candidate,
            None,
            Processes(rank, 2, 2, lambda done: parts.append(done) or done),
            False,
        )
    computed = [{row.name for row, _ in part} for part in parts]
    whole, _ = analyzed(model)
    assert not computed[0] & computed[1] and computed[0] | computed[1] == {row.name for row in whole if row.kappas}
    assert all(len(part) >= 6 for part in computed)
