# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`recipes/benchmarks/trajectories.py`: resuming, reports, exact pass@k."""

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml

from trl_entropy.countdown import model as countdown_model
from trl_entropy.countdown.chat import conversation
from trl_entropy.countdown.task import TASKS, Prompt, chain, solutions


TOOLS = TASKS["tools"]
BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """The scripts as modules, by name."""
    sys.path.insert(0, str(BENCHMARKS))
    found = {
        name: importlib.import_module(name) for name in ("countdown_scores", "trajectories_report", "trajectories")
    }
    sys.path.remove(str(BENCHMARKS))
    return found


def test_right_completions_have_their_exact_probabilities(modules, monkeypatch):
    scores = modules["countdown_scores"]
    rows = [Prompt((1, 2, 3, 4), 10), Prompt((2, 4, 6, 9), 17)]
    monkeypatch.setattr(scores, "prompts", lambda held_out, task: rows)
    tokenizer = countdown_model.build_tokenizer()
    model = countdown_model.build_model(countdown_model.WarmStart(hidden_size=16, layers=1, heads=2)).eval()
    evaluation = scores.CountdownScores(tokenizer, batch_size=7)
    with torch.no_grad():
        plain, hot = evaluation.computed(model, (1.0, 1.5))
    assert len(plain) == sum(len(solutions(*row)) for row in rows)
    # One completion, token by token.
    tokens = tokenizer(f"{rows[0].text} {chain(solutions(*rows[0])[3])} <eos>", return_tensors="pt").input_ids
    for probabilities, temperature in ((plain, 1.0), (hot, 1.5)):
        logp = 0.0
        for place in range(8, tokens.size(1)):
            with torch.no_grad():
                logits = model(tokens[:, :place]).logits[0, -1] / temperature
            logp += logits.log_softmax(-1)[tokens[0, place]].item()
        assert math.log(probabilities[3]) == pytest.approx(logp, rel=1e-5)


def test_estimate_of_the_rest_is_unbiased(modules):
    no_success = modules["countdown_scores"].no_success
    # Over all counts o of m samples, each right with chance r = 0.2, the mean is (1 - p_in)^k (1 - r)^k.
    for m, k in ((5, 2), (5, 5), (8, 4)):
        counts = torch.arange(m + 1)
        weights = torch.tensor([math.comb(m, o) * 0.2**o * 0.8 ** (m - o) for o in range(m + 1)], dtype=torch.float64)
        found = no_success(torch.full((m + 1,), 0.3, dtype=torch.float64), torch.full((m + 1,), m), counts, k)
        assert (weights * found).sum().item() == pytest.approx(0.7**k * 0.8**k)
    # Too few samples, and none.
    few = no_success(torch.tensor([0.5, 0.5]), torch.tensor([2, 0]), torch.tensor([1, 0]), 3)
    assert few.tolist() == pytest.approx([0.5**3 * 0.5**3, 0.5**3])


def test_scores_of_known_probabilities(modules, monkeypatch):
    scores = modules["countdown_scores"]
    monkeypatch.setattr(scores, "prompts", lambda held_out, task: [Prompt((1, 2, 3, 4), 10), Prompt((2, 4, 6, 9), 17)])
    evaluation = scores.CountdownScores(countdown_model.build_tokenizer())
    evaluation.owner = torch.tensor([0, 0, 1])
    computed, inside = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64), torch.tensor([2, 10, 16])
    found = evaluation.scores(computed, inside, torch.tensor([0, 0, 0]))
    assert found["pass@1"] == pytest.approx((0.4 + 0.5) / 2) and found["outside"] == 0
    assert found["pass@4"] == pytest.approx((1 - 0.6**4 + 1 - 0.5**4) / 2)
    every = [1 - (1 - p) ** 16 for p in (0.1, 0.3, 0.5)]
    assert found["distinct"] == pytest.approx(sum(every) / 2)
    assert found["coverage"] == pytest.approx(((every[0] + every[1]) / 2 + every[2]) / 2)
    # The first prompt has 20 other samples. 5 are right: a quarter of the 0.6 that is not computed. The first answer
    # has 30 other samples, all 5 are its own.
    found = evaluation.scores(computed, inside, torch.tensor([5, 0, 0]))
    assert found["pass@1"] == pytest.approx((0.4 + 0.6 / 4 + 0.5) / 2) and found["outside"] == 5 / 64
    assert found["pass@16"] == pytest.approx((1 - 0 * 0.6**16 + 1 - 0.5**16) / 2)
    first = 1 - 0.9**16 * math.comb(25, 16) / math.comb(30, 16)
    assert found["distinct"] == pytest.approx((first + every[1] + every[2]) / 2)


def test_right_answers_after_another_thought_are_counted_apart(modules, monkeypatch):
    scores = modules["countdown_scores"]
    row = Prompt((1, 2, 3, 4), 10)
    monkeypatch.setattr(scores, "prompts", lambda held_out, task: [row])
    answer, other = solutions(*row)[:2]
    another = chain(other).replace(f"</think> {other}", f"</think> {answer}")
    drawn = [chain(answer), another, "</think> 1", chain(other)]
    monkeypatch.setattr(scores, "sample", lambda *arguments: (drawn, torch.tensor([0.1, 0.3])))
    inside, outside, entropy = scores.CountdownScores(countdown_model.build_tokenizer()).sampled(None, 1.0)
    assert inside[:2].tolist() == [8, 8] and inside.sum() == 16 and entropy == pytest.approx(0.2)
    assert outside[0] == outside.sum() == 8


PLAN = {
    "base": {"max_steps": 40, "logging_steps": 4},
    "evaluate_every": 20,
    "evaluate_at": [1.2],
    "levels": [0.25],
    "entries": {
        "kl_cov": {"strengths": [{"kl_cov_ratio": 0.01}, {"kl_cov_ratio": 0.02}]},
        "two": {
            "methods": ["pass_at_k"],
            "settings": {"pass_at_k_size": 8},
            "strengths": [{"after": 12}],
            "then": {"beta": 0.1},
        },
    },
    "stages": [{"arms": ["kl_cov/2", "stock"], "seeds": [0, 1]}, {"arms": ["kl_cov", "two"], "seeds": [0]}],
}


@pytest.fixture
def plan_file(tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    return tmp_path / "plan.yaml"


def test_a_plan_lists_arms_stages_and_phases(modules, plan_file):
    script = modules["trajectories"]
    plan = script.read_plan(plan_file, script.quickstart.RECIPE)
    assert list(plan.arms) == ["stock", "kl_cov/1", "kl_cov/2", "two/1"]
    assert plan.stages == [(["kl_cov/2", "stock"], [0, 1]), (["kl_cov/1", "kl_cov/2", "two/1"], [0])]
    (alone,) = script.phases(plan.arms["stock"])
    assert alone[0] == 0 and alone[1]["max_steps"] == 40 and alone[1]["methods"] == []
    assert not set(script.OURS) & set(alone[1])
    (begin, first), (switch, second) = script.phases(plan.arms["two/1"])
    assert (begin, first["max_steps"], first["methods"], first["pass_at_k_size"]) == (0, 12, ["pass_at_k"], 8)
    assert (switch, second["max_steps"], second["methods"], second["beta"]) == (12, 28, [], 0.1)
    assert "pass_at_k_size" not in second
    with pytest.raises(ValueError, match="after=40 must lie between 0 and max_steps=40"):
        list(script.phases({**plan.arms["two/1"], "after": 40}))
    with pytest.raises(ValueError, match="no entry is named 'kl'"):
        script.expand(["stock", "kl"], plan.arms)


@pytest.fixture
def tiny(modules, plan_file, tmp_path, monkeypatch):
    """Trains an arm with a tiny model and four held-out prompts, and returns its result."""
    script, scores = modules["trajectories"], modules["countdown_scores"]
    few = scores.prompts(held_out=True)[:4]
    monkeypatch.setattr(scores, "prompts", lambda held_out, task=None: few)
    monkeypatch.setattr(scores, "SAMPLES", 4)
    start = countdown_model.WarmStart(hidden_size=16, layers=1, heads=2)
    countdown_model.build_model(start).save_pretrained(tmp_path / "model")
    countdown_model.build_tokenizer().save_pretrained(tmp_path / "model")
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 8, "learning_rate": 1e-2}

    def reward(completions, **kwargs):  # no completion of an untrained model is right
        return [float(len(set(text.split())) % 2) for text in completions]

    def train(**changes):
        settings = {**script.read_plan(plan_file, script.quickstart.RECIPE).arms["stock"], **small, **changes}
        settings |= {"then": {**settings, **changes["then"]}} if "then" in changes else {}
        task = dataclasses.replace(script.COUNTDOWN, reward=reward)
        return script.train_arm(settings, 0, task, tmp_path / "model", tmp_path / "out")

    return train


def test_a_run_is_evaluated_on_the_way(tiny):
    often = tiny(evaluate_every=4)
    assert [(point["step"], point["temperature"]) for point in often["points"]] == [
        (0, 1.0), (0, 1.2), (4, 1.0), (4, 1.2), (8, 1.0), (8, 1.2)
    ]  # fmt: skip
    assert [point["step"] for point in often["history"]] == [4, 8] and often["seconds"]["evaluation"] > 0
    # Evaluations do not change the run.
    rarely = tiny(evaluate_every=100)
    assert [point["step"] for point in rarely["points"]] == [0, 0, 8, 8]
    assert rarely["points"][2:] == often["points"][4:] and often["points"][0] != {**often["points"][4], "step": 0}


def test_a_second_phase_starts_from_the_first_ones_model(tiny):
    found = tiny(evaluate_every=2, after=4, then={"learning_rate": 0.0})["points"][::2]
    assert [point["step"] for point in found] == [0, 2, 4, 6, 8]
    start, first, switch, *rest = [{key: value for key, value in point.items() if key != "step"} for point in found]
    assert start != first != switch and rest == [switch, switch]


def test_lora_trains_adapters_only(tiny, monkeypatch, modules):
    seen = []
    trainer = modules["trajectories"].EntropyGRPOTrainer

    class Watched(trainer):
        def train(self, *args, **kwargs):
            before = {name: weight.clone() for name, weight in self.model.named_parameters()}
            found = super().train(*args, **kwargs)
            seen.append({name for name, weight in self.model.named_parameters() if not weight.equal(before[name])})
            return found

    monkeypatch.setattr(modules["trajectories"], "EntropyGRPOTrainer", Watched)
    points = tiny(evaluate_every=8, lora={"r": 2, "target_modules": "all-linear"})["points"][::2]
    assert [point["step"] for point in points] == [0, 8] and points[0] != {**points[1], "step": 0}
    assert seen[0] and all("lora_" in name for name in seen[0])
    with pytest.raises(ValueError, match="must not be set with `then`"):
        tiny(lora={"r": 2}, then={}, after=4)


def rows(script, settings, shift=0.0):
    """A trajectory from (0.2, 0.8) down to (0.4, 0.6 + `shift`)."""
    points = [
        {"step": step, "temperature": 1.0, "pass@1": 0.2 + step / 200, "pass@16": 0.8 + step * (shift / 40 - 0.005),
         "distinct": 2.0, "entropy": 0.2, "outside": 0.0}
        for step in (0, 20, 40)
    ]  # fmt: skip
    points += [{**point, "temperature": 1.2} for point in points] if "evaluate_at" in settings else []
    return {"settings": settings, "points": points, "history": [], "seconds": {"training": 1.0, "evaluation": 0.5}}


@pytest.fixture
def launch(modules, plan_file, tmp_path, monkeypatch):
    """Runs the script on the plan. Training adds the arm's seed to a list, and returns made-up scores."""
    script, made = modules["trajectories"], []

    def train_arm(settings, seed, *rest):
        name = "stock" if "evaluate_at" in settings else "+".join(settings["methods"])
        made.append((name, seed))
        return rows(script, settings, 0.0 if name == "stock" else 0.1 + 0.032 * seed)

    def run(*words):
        monkeypatch.setattr(script, "train_arm", train_arm)
        monkeypatch.setattr(script, "silence_libraries", lambda: None)
        monkeypatch.setattr(script.torch, "set_num_threads", lambda threads: None)
        monkeypatch.setattr(script, "warm_start", lambda cache: None)
        made.clear()
        arguments = ["trajectories.py", f"--plan={plan_file}", f"--output={tmp_path / 'out'}", *words]
        monkeypatch.setattr(sys, "argv", arguments)
        script.main()
        return list(made)

    return run


def test_runs_are_made_once_in_the_order_of_the_plan(launch, modules, tmp_path, monkeypatch):
    monkeypatch.setattr(modules["trajectories"], "report", lambda *arguments: None)
    runs = [("kl_cov", 0), ("stock", 0), ("kl_cov", 1), ("stock", 1), ("kl_cov", 0), ("pass_at_k", 0)]
    assert launch() == runs  # the fifth is the other strength
    assert launch() == []
    # An interrupted run has no file, or one that is not complete under another name.
    path = modules["trajectories"].run_file(tmp_path / "out", "stock", 1)
    path.rename(path.with_suffix(".part"))
    assert launch() == [("stock", 1)]
    # A run of other settings is made again.
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "settings": {**content["settings"], "evaluate_every": 10}}))
    assert launch() == [("stock", 1)]


def test_workers_stages_and_arms_split_the_runs(launch, modules, monkeypatch):
    monkeypatch.setattr(modules["trajectories"], "report", lambda *arguments: None)
    assert launch("--stages", "2", "--only", "two") == [("pass_at_k", 0)]
    assert launch("--worker=0", "--workers=2", "--stages", "1") == [("kl_cov", 0), ("kl_cov", 1)]
    assert launch("--worker=1", "--workers=2", "--stages", "1") == [("stock", 0), ("stock", 1)]


def test_report_is_made_again_from_stored_scores(launch, tmp_path, capsys):
    assert launch("--report") == [] and capsys.readouterr().out == "There is no run of stock to compare with.\n"
    launch()
    out = tmp_path / "out"
    text, scores = (out / "trajectories.md").read_text(), (out / "plan.json").read_text()
    assert (out / "trajectories.png").stat().st_size > 0
    passes, distinct = (
        {tuple(word.strip() for word in line.split("|")[1:3]): line for line in part.splitlines() if line[:1] == "|"}
        for part in text.split("`distinct` at equal pass@1")
    )
    # 0.25 is a quarter of the way: the method is 0.025 and 0.033 higher, mean 0.029 ± 12.706 * 0.004.
    differences = "+0.029 ± 0.051 | +0.116 ± 0.203 | +0.058 ± 0.102 | +0.0116 ± 0.0203 | 2 |"
    assert passes["`kl_cov`", "0.02"].endswith(f"| 0.400 ± 0.000 | +0.000 ± 0.000 | {differences}")
    assert passes["`kl_cov`", "0.01"].endswith("| 0.400 | +0.000 | +0.025 | +0.100 | +0.050 | +0.0100 | 1 |")
    assert passes["`evaluation_temperature`", "1.2"].count("+0.000 ± 0.000") == 4
    assert passes["stock, another seed", ""].count("+0.000 ± 0.000") == 4
    assert passes["`stock`", ""].startswith("| `stock` |  | 0.400 ± 0.000 |  |")
    assert distinct["`kl_cov`", "0.02"].endswith("| +0.00 ± 0.00 | +0.00 ± 0.00 | +0.00 ± 0.00 | +0.000 ± 0.000 | 2 |")
    capsys.readouterr()
    for path in (out / "runs").rglob("*.json"):
        path.unlink()
    (out / "trajectories.md").unlink()
    (tmp_path / "plan.json").write_text(scores)  # the repository's file is beside the plan
    assert launch("--report") == []
    assert capsys.readouterr().out.startswith(f"From {tmp_path / 'plan.json'}:")
    assert (out / "trajectories.md").read_text() == text


def test_runs_without_stored_scores_are_added(launch, tmp_path):
    launch()
    out, stored = tmp_path / "out", tmp_path / "plan.json"
    scores = json.loads((out / "plan.json").read_text())
    for path in (out / "runs").rglob("*.json"):
        path.unlink()
    part = json.loads(json.dumps(scores))
    del part["runs"]["kl_cov/2"]["seeds"]["1"]
    stored.write_text(json.dumps(part))
    assert launch("--continue") == [("kl_cov", 1)]
    assert json.loads((out / "plan.json").read_text()) == scores
    assert len(launch()) == 5  # all are made without the flag, but for the one that is there


def test_conversations_of_an_agent_have_their_exact_probabilities(modules, monkeypatch):
    scores = modules["countdown_scores"]
    row = Prompt((1, 2, 3, 4), 10)
    monkeypatch.setattr(scores, "prompts", lambda held_out, task: [row])
    tokenizer = countdown_model.build_tokenizer(TOOLS)
    model = countdown_model.build_model(
        countdown_model.WarmStart(task=TOOLS, hidden_size=16, layers=1, heads=2)
    ).eval()
    evaluation = scores.AgentScores(tokenizer, samples=4)
    with torch.no_grad():
        (found,) = evaluation.computed(model, (1.5,))
    # Three calls with their ends, and an answer with its end. Results and `<assistant>` are not the policy's.
    answer = solutions(*row)[3]
    tokens = evaluation.tokens[3]
    words = tokenizer.convert_ids_to_tokens(tokens.tolist())
    own, turn = [], False
    for place, word in enumerate(words):
        turn = turn and words[place] != "<tool>"
        own += [place] * turn
        turn = turn or word == "<assistant>"
    assert len(own) == 3 * 8 + 8 and words[own[-1]] == "<eos>" and words[own[-8] : own[-1]] == answer.split()
    logp = 0.0
    for place in own:
        with torch.no_grad():
            logits = model(tokens[None, :place]).logits[0, -1] / 1.5
        logp += logits.log_softmax(-1)[tokens[place]].item()
    assert math.log(found[3]) == pytest.approx(logp, rel=1e-5)


def test_samples_of_an_agent_are_told_from_computed_ones(modules, monkeypatch):
    scores = modules["countdown_scores"]
    row = Prompt((1, 2, 3, 4), 10)
    monkeypatch.setattr(scores, "prompts", lambda held_out, task: [row])
    answer, other = solutions(*row)[:2]
    talk = conversation(row.text, answer)[1:]
    another = [*conversation(row.text, other)[1:-1], talk[-1]]
    wrong = [*talk[:-1], {"role": "assistant", "content": "1"}]
    monkeypatch.setattr(scores, "converse", lambda *arguments: ([talk, another, wrong, talk], [torch.tensor([0.5])]))
    inside, outside, entropy = scores.AgentScores(countdown_model.build_tokenizer(TOOLS), samples=4).sampled(None, 1.0)
    assert inside[0] == inside.sum() == 2 and outside[0] == outside.sum() == 1 and entropy == 0.5


def test_tokens_and_calls_are_counted_up_to_a_step(modules):
    spent = modules["trajectories"].spent
    history = [
        {"step": 2, "completions/mean_length": 30.0, "tools/call_frequency": 3.0},
        {"step": 4, "completions/mean_length": 20.0, "tools/call_frequency": 2.0, "branching/shared_fraction": 0.25},
        {"step": 6, "completions/mean_length": 10.0, "tools/call_frequency": 1.0},
    ]
    assert spent(history, 0, 8) == {"tokens": 0, "calls": 0}
    assert spent(history, 5, 8) == {"tokens": 16 * 30 + 16 * 0.75 * 20, "calls": 16 * 3 + 16 * 2}


def test_costs_are_compared_at_equal_tokens(modules):
    report = modules["trajectories_report"]

    def run(tokens, passed):
        return [
            {"pass@1": score, "pass@16": 1 - score, "tokens": count, "calls": count / 10}
            for score, count in zip(passed, tokens, strict=True)
        ]

    runs = {
        "stock": {0: run((0, 100, 200), (0.1, 0.2, 0.3))},
        "branching/1": {0: run((0, 75, 150), (0.1, 0.25, 0.35)), 1: run((0, 75, 150), (0, 0, 0))},
    }
    text = report.table_of_costs(report.Trajectories(runs, {}), {"stock": {}, "branching/1": {}})
    # The other arm ends at 150 tokens, where stock was at 0.25.
    assert text.splitlines()[2:] == ["| `branching` |  | 0.75 | 0.75 | +0.050 | +0.100 | -0.100 | 1 |"]
