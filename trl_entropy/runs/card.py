# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: model, training, results and citations. TRL's own card cites a single paper."""

import math
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata, resources
from importlib.util import find_spec
from numbers import Real
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .._version import __version__
from ..curves.logged import entropy_of
from ..methods import Method
from ..paper import Paper
from ..settings import default_of, fields_of
from .provenance import public_value


CURVE = "entropy.png"
SPLITS = {"train": "Training, last logged", "eval": "Evaluation while training, last", "test": "Results"}
PACKAGES = {"TRL": "trl", "Transformers": "transformers", "PyTorch": "torch", "Datasets": "datasets"}
TRL_BIBTEX = """@software{vonwerra2020trl,
  title   = {{TRL: Transformers Reinforcement Learning}},
  author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and
             Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
  license = {Apache-2.0},
  url     = {https://github.com/huggingface/trl},
  year    = {2020}
}"""


def points_of(history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of each finite value of `key` in the logs; a run that diverged logs `None` too.

    The values of `entropy` and `eval_entropy` are those of [`entropy_of`].
    """
    split, name, rest = key.partition("entropy")
    is_entropy = name and not rest and split in ("", "eval_")
    values = [(line["step"], entropy_of(line, split) if is_entropy else line.get(key)) for line in history]
    logged = [(step, value) for step, value in values if isinstance(value, (int, float))]
    return [point for point in logged if math.isfinite(point[1])]


def last_values(history: list[dict[str, Any]], keys: Iterable[str]) -> dict[str, float]:
    """The last finite value of each of `keys` in the logs, with six digits."""
    points = {key: points_of(history, key) for key in keys}
    return {key: float(f"{found[-1][1]:.6g}") for key, found in points.items() if found}


def watched(history: list[dict[str, Any]], monitors: Iterable[Any]) -> dict[str, tuple[float, float]]:
    """The first and the last finite value of what monitors log first of all, by its key in the logs."""
    keys = (f"{monitor.name}/{monitor.headline}" for monitor in monitors)
    points = {key: points_of(history, key) for key in keys}
    return {key: (found[0][1], found[-1][1]) for key, found in points.items() if found}


def finite_results(results: dict[str, Any]) -> dict[str, float]:
    """Results as plain numbers, without those that are not finite. Scalars of NumPy and PyTorch are accepted.

    Raises:
        `ValueError`: a result is not a number.
    """
    if not isinstance(results, Mapping):
        raise ValueError(f"`results` must map names to numbers, got {type(results).__name__}.")
    found = {}
    for name, value in results.items():
        try:
            number = value.item() if hasattr(value, "item") else value
        except (ValueError, RuntimeError):  # an array of several elements
            number = None
        if isinstance(number, bool) or not isinstance(number, Real):
            shown = " ".join(repr(value).split())
            raise ValueError(f"`results` must map names to numbers, got {shown} for {name!r}.")
        if math.isfinite(number):
            found[str(name)] = number if isinstance(number, int) else float(number)
    return found


def eval_results(metrics: dict[str, dict[str, float]], dataset: str | None) -> list[EvalResult]:
    """Metrics by dataset split -> entries of the card's `model-index`."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "unpublished",
            dataset_name=dataset or "unpublished prompts",
            dataset_split=split,
            metric_type=name.replace("/", "_"),
            metric_name=name,
            metric_value=value,
        )
        for split, values in metrics.items()
        for name, value in values.items()
    ]


def backticks(text: str, least: int) -> str:
    """A fence of at least `least` backticks, longer than any run of them in `text`."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def fenced(text: str, language: str) -> str:
    """Text as a Markdown code block."""
    fence = backticks(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def cell(value: Any) -> str:
    """A value as code in a cell of a Markdown table; text with invisible characters is quoted and escaped."""
    value = public_value(value)
    seen = not isinstance(value, str) or (value and value == value.strip() and value.isprintable())
    text = (str(value) if seen else repr(value)).replace("|", r"\|")
    fence, space = backticks(text, 1), " " * ("`" in text)
    return f"{fence}{space}{text}{space}{fence}"


def changed_fields(method: Method, config: Any) -> list[tuple[str, str, str]]:
    """(name, value, default) of each field of a method that differs from its default."""
    others = tuple(f"{name}_" for name in getattr(config, "methods", ()) if name.startswith(f"{method.name}_"))
    rows = []
    for field in fields_of(method.name, config):
        value, default = getattr(config, field.name), default_of(field)
        if value != default and not field.name.startswith(others):
            rows.append((field.name, cell(value), cell(default)))
    return rows


def described(method: Method, config: Any) -> dict[str, Any]:
    """A method as the template needs it."""
    paper = method.paper
    return {"name": method.name, "title": paper.title, "url": paper.url, "changed": changed_fields(method, config)}


def papers_of(trainer_paper: dict[str, str], methods: list[Method], others: Iterable[Paper] = ()) -> list[Paper]:
    """The papers of the trainer (if it has one), of the methods, and others, each once."""
    papers = [*(method.paper for method in methods), *others]
    if trainer_paper:
        papers.insert(0, Paper(trainer_paper["id"], trainer_paper["title"], trainer_paper["citation"].strip()))
    return list({paper.arxiv: paper for paper in papers}.values())


def versions() -> dict[str, str]:
    """Versions of this package, the main libraries and Python, by name."""
    found = {"trl-entropy": __version__}
    found |= {name: metadata.version(package) for name, package in PACKAGES.items()}
    return found | {"Python": platform.python_version()}


def draw_curve(history: list[dict[str, Any]], folder: str) -> str | None:
    """Draws entropy, and reward if it was logged, over optimizer steps -> file name.

    Returns `None` if no entropy was logged or matplotlib is not installed.
    """
    points = {key: points_of(history, key) for key in ("entropy", "reward")}
    shown = {key: values for key, values in points.items() if values}
    if "entropy" not in shown or find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # an optional dependency

    width, height = 4.6 * len(shown), 2.9
    figure = Figure(figsize=(width, height))
    # Fixed margins, in inches, and few ticks: a layout that is fitted and twice the ticks would take three times as
    # long, at each checkpoint
    figure.subplots_adjust(0.6 / width, 0.5 / height, 1 - 0.15 / width, 1 - 0.35 / height, wspace=0.2)
    titles = {"entropy": "token entropy (nats)", "reward": "reward"}
    for axes, (key, values) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.plot(*zip(*values, strict=True), color="C1" if key == "reward" else "C0", marker="." * (len(values) < 3))
        axes.set(title=titles[key], xlabel="optimizer step")
        if min(value for _, value in values) >= 0:
            axes.set_ylim(0, None)
        axes.locator_params(nbins=4)
        axes.grid(alpha=0.3)
    figure.savefig(os.path.join(folder, CURVE), dpi=110)
    return CURVE


def build_card(
    *,
    model_name: str,
    model_id: str,
    base_model: str | None,
    dataset_name: str | None,
    license: dict[str, Any],
    library_name: str,
    tags: list[str],
    metrics: dict[str, dict[str, float]],
    recipe: dict[str, Any],
    command: str | None,
    **shown: Any,
) -> ModelCard:
    """The card from its facts. `metrics` are by split, as in `SPLITS`; `shown` goes to the template only."""
    metrics = {split: finite_results(values) for split, values in metrics.items()}
    data = ModelCardData(
        model_name=model_name,
        base_model=base_model,
        datasets=dataset_name,
        library_name=library_name,
        tags=["generated_from_trainer", *tags],
        eval_results=eval_results(metrics, dataset_name) or None,
        **license,
    )
    return ModelCard.from_template(
        data,
        template_path=str(resources.files("trl_entropy") / "templates" / "model_card.md"),
        model_name=model_name,
        model_id=repr(model_id).replace("'", '"'),
        base_model=base_model,
        dataset_name=dataset_name,
        metric_tables={title: metrics[split] for split, title in SPLITS.items() if metrics.get(split)},
        recipe=fenced(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=119).strip(), "yaml"),
        command=command and fenced(command, "bash"),
        trl_bibtex=TRL_BIBTEX,
        versions=versions(),
        **shown,
    )
