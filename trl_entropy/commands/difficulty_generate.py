# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy difficulty generate`: answers, each with the strategy of its question, and what that saved."""

import argparse
import inspect
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .epr import read_rows


if TYPE_CHECKING:
    from ..uncertainty.difficulty_answers import Given

GIVEN_APART = ("prompt", "prompts", "completion", "completions", "completion_ids")
ADAPTED, NORMAL_FOR_ALL, DIFFERENCE = "by difficulty", "normal for all", "difference"


def load_model(name: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device)
    return model, AutoTokenizer.from_pretrained(name)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")


def generate(options: argparse.Namespace) -> str:
    """Answers the questions, writes the answers, and returns a table of tokens and accuracy."""
    from transformers import set_seed

    from ..uncertainty.diffadapt import NORMAL
    from ..uncertainty.difficulty_answers import answer_questions
    from ..uncertainty.difficulty_probe import DifficultyProbe

    rows = read_rows(options.data)
    if any(row.get("prompt") is None for row in rows):
        raise ValueError(f"`--data` must have the column `prompt`, got {', '.join(rows[0])}.")
    reward = reward_of(options.reward, rows)
    probe = DifficultyProbe.load(options.probe)
    model, tokenizer = load_model(options.model)
    prompts, size = [row["prompt"] for row in rows], options.batch_size
    chosen = probe.choose(model, tokenizer, prompts, size)
    ways = {ADAPTED: chosen}
    if options.baseline:
        ways[NORMAL_FOR_ALL] = [probe.strategies[NORMAL]] * len(rows)
    given, rewards = {}, {}
    for name, strategies in ways.items():
        set_seed(options.seed)
        given[name] = answer_questions(model, tokenizer, prompts, strategies, options.max_new_tokens, size)
        rewards[name] = rewarded(reward, rows, given[name])
    write_lines(
        options.out,
        [
            {"prompt": row["prompt"], **record_of(given[name][n], rewards[name][n]), "way": name}
            for name in ways
            for n, row in enumerate(rows)
        ],
    )
    return table(given, rewards)


def reward_of(name: str | None, rows: Sequence[dict[str, Any]]) -> Callable | None:
    """The reward function, if the rows have what it must be given."""
    if name is None:
        return None
    from .rewards import reward_by_name

    found = reward_by_name(name)
    parameters = inspect.signature(found).parameters.values()
    known = {"prompts", "completions", "completion_ids", *rows[0]}
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if lacking := [need for need in needed if need not in known]:
        raise ValueError(f"`--reward` {name!r} needs the column {lacking[0]!r}, got {', '.join(rows[0])}.")
    return found


def rewarded(reward: Callable | None, rows: Sequence[dict[str, Any]], given: "Sequence[Given]") -> list[float]:
    """The reward of each answer, NaN if there is none."""
    if reward is None:
        return [math.nan] * len(rows)
    prompts = [row["prompt"] for row in rows]
    completions = [
        one.text if isinstance(prompt, str) else [{"role": "assistant", "content": one.text}]
        for prompt, one in zip(prompts, given, strict=True)
    ]
    columns = {key: [row.get(key) for row in rows] for key in rows[0] if key not in GIVEN_APART}
    ids = [one.ids for one in given]
    values = reward(prompts=prompts, completions=completions, completion_ids=ids, **columns)
    return [math.nan if value is None else float(value) for value in values]


def record_of(one: "Given", reward: float) -> dict[str, Any]:
    """An answer as a line of the file."""
    return {
        "completion": one.text,
        "strategy": one.strategy.name,
        "tokens": one.tokens,
        "truncated": one.truncated,
        "reward": None if math.isnan(reward) else reward,
    }


def table(given: "dict[str, list[Given]]", rewards: dict[str, list[float]]) -> str:
    """Tokens and rewards of each way, and the differences of the same questions."""
    from ..tables import text_table
    from ..uncertainty.compared import mean_with_interval
    from ..uncertainty.diffadapt import LABELS

    tokens = {name: [float(one.tokens) for one in answers] for name, answers in given.items()}
    truncated = {name: [float(one.truncated) for one in answers] for name, answers in given.items()}
    if NORMAL_FOR_ALL in given:
        for values in (tokens, rewards, truncated):
            pairs = zip(values[ADAPTED], values[NORMAL_FOR_ALL], strict=True)
            values[DIFFERENCE] = [one - other for one, other in pairs]
    lines = []
    for name in tokens:
        line = {"way": name, "tokens": str(mean_with_interval(tokens[name]))}
        if not all(map(math.isnan, rewards[ADAPTED])):
            line["reward"] = str(mean_with_interval(rewards[name]))
        lines.append(line | {"truncated": str(mean_with_interval(truncated[name]))})
    names = [one.strategy.name for one in given[ADAPTED]]
    counts = ", ".join(f"{names.count(name)} as {name}" for name in LABELS)
    text = f"{len(names)} questions, answered {counts}. In brackets: 95 % intervals over questions."
    return f"{text_table(lines)}\n\n{text}"
