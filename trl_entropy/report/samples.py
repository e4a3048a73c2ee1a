# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files of a run besides its log: completions with rewards, tokens with entropies, tokens selected by TIP."""

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from ..estimates import accuracy_first, pass_at_k
from ..runs.files import COMPLETIONS, TOKEN_FILE, number_of
from ..uncertainty.u_curve import Question, questions_of
from .runs import Run, read_json


ENTROPY = "token_entropy_mean"  # the column of our trainers


def files_of(run: Run, pattern: str) -> list[Path]:
    """The files of logged steps, in order. Files of other steps come from an earlier run and are left out."""
    logged = {line["step"] for line in run.lines}
    found = {path: number_of(path) or 0 for path in (run.folder / COMPLETIONS).glob(pattern)}
    return sorted((path for path, step in found.items() if step in logged), key=lambda path: found[path])


def pass_at_k_points(run: Run) -> tuple[str, list[dict[str, float]]] | None:
    """The reward function that tells right completions, and pass@1 and pass@k at each log; `None` without data.

    Computed from the tables of `log_completions`. A completion is right if the first reward function that only
    ever returned 0 and 1 returned 1 (those with "accuracy" in their names come first); k is the most common number
    of completions per prompt. The estimate is unbiased and a mean over prompts with at least k completions.
    """
    found = scored_tables(run)
    if found is None:
        return None
    name, tables = found
    counts = {int(table["step"].iloc[0]): right_by_prompt(table, name) for table in tables}
    sizes = Counter(samples for groups in counts.values() for samples, _ in groups)
    k = sizes.most_common(1)[0][0] if sizes else 0
    counts = {step: [count for count in groups if count[0] >= k] for step, groups in counts.items()}
    if k < 2:
        return None
    return name, [
        {"step": step, **{f"pass@{n}": fmean(pass_at_k(*count, n) for count in groups) for n in (1, k)}}
        for step, groups in counts.items()
        if groups
    ]


def scored_tables(run: Run) -> tuple[str, list[pd.DataFrame]] | None:
    """The reward function that tells right completions, and the tables of `log_completions`; `None` without either."""
    if run.settings and not run.settings.get("log_completions"):  # tables in the folder come from an earlier run
        return None
    tables = [table for table in map(read_table, files_of(run, "completions_*.parquet")) if len(table)]
    names = dict.fromkeys(key.split("/")[1] for line in run.lines for key in line if key.startswith("rewards/"))
    binary = (name for name in accuracy_first(names) if tables and all(gives_0_and_1(table, name) for table in tables))
    name = next(binary, None)
    return None if name is None else (name, tables)


def questions_asked(run: Run) -> list[Question]:
    """The prompts of each logged batch, with accuracy and entropy of their completions; empty without these."""
    found = scored_tables(run)
    if found is None or not all(ENTROPY in table for table in found[1]):
        return []
    name, questions = found[0], list[Question]()
    for table in found[1]:
        known = table[table[name].notna() & table[ENTROPY].notna()]
        keys, right, entropy = prompt_texts(known), known[name].astype(float), known[ENTROPY].astype(float)
        questions += questions_of(keys.tolist(), right.tolist(), entropy.tolist())
    return [question for question in questions if question.samples > 1]


def prompt_texts(table: pd.DataFrame) -> pd.Series:
    """What completions of the same prompt share."""
    return table["prompt"].map(lambda prompt: prompt if isinstance(prompt, str) else repr(list(prompt)))  # messages


def gives_0_and_1(table: pd.DataFrame, name: str) -> bool:
    """Whether a reward function returned nothing but 0 and 1."""
    return name in table and bool(table[name].dropna().isin((0, 1)).all())


def right_by_prompt(table: pd.DataFrame, name: str) -> list[tuple[int, int]]:
    """(scored completions, right completions) of each prompt."""
    scored = table[table[name].notna()]
    return [(len(values), int(values.sum())) for _, values in scored.groupby(prompt_texts(scored))[name]]


def read_table(path: Path) -> pd.DataFrame:
    """A table of completions. Raises `ValueError` if the file is not Parquet."""
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of the latter
        raise ValueError(f"{path} must be a Parquet file, but cannot be read: {error}.") from None


def token_logs(run: Run) -> list[dict[str, Any]]:
    """The first and the last token log of a run."""
    paths = files_of(run, f"{TOKEN_FILE}*.json")
    logs = {path: read_json(path) for path in dict.fromkeys((*paths[:1], *paths[-1:]))}
    for path, log in logs.items():
        check_token_log(path, log)
    return [*logs.values()]


def check_token_log(path: Path, log: Any) -> None:
    """Raises `ValueError` if a file does not have the form that the trainer writes."""
    try:
        fits = isinstance(log["step"], int) and all(map(is_record, log["completions"]))
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{path} must hold `step` and `completions` with as many `tokens` as `entropies`: texts, also as "
            "`prompt`, and numbers or null, also as `advantage`."
        )


def is_record(record: dict[str, Any]) -> bool:
    """Whether an entry of a token log is a completion."""
    texts, numbers = record["tokens"], record["entropies"]
    return (
        len(texts) == len(numbers)
        and all(isinstance(text, str) for text in (record.get("prompt", ""), *texts))
        and all(isinstance(number, int | float | None) for number in (record.get("advantage"), *numbers))
    )


def tip_scatter(run: Run) -> dict[str, Any] | None:
    """Tokens of a batch in distillation: `entropy`, `divergence`, `kept`, and two thresholds; `None` without a file.

    The module `trl_entropy.trainers.quadrants` writes the file.
    """
    path = run.folder / "tip_scatter.json"
    if not path.exists():
        return None
    found = read_json(path)
    try:
        lists = [found[key] for key in ("entropy", "divergence", "kept")]
        fits = len(set(map(len, lists))) == 1 and all(
            isinstance(value, int | float) for part in lists for value in part
        )
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"{path} must hold lists `entropy`, `divergence` and `kept` of the same length.")
    return found if found.get("step", 0) <= run.steps else None  # otherwise an earlier run wrote it
