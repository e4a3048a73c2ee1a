# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The model card: what was trained, how, with which result, and whom to cite. TRL's own is for one paper only."""

import math
import os
import platform
from collections.abc import Iterable
from dataclasses import MISSING
from functools import lru_cache
from importlib import metadata, resources
from importlib.util import find_spec
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from . import __version__
from .methods import Method, Paper
from .provenance import public_value


CURVE = "entropy.png"
SPLITS = {"train": "Training, last logged", "eval": "Evaluation while training, last", "test": "Results"}
LICENSE_KEYS = ("license", "license_name", "license_link")
PACKAGES = {"TRL": "trl", "Transformers": "transformers", "PyTorch": "torch", "Datasets": "datasets"}
TRL_BIBTEX = """@software{vonwerra2020trl,
  title   = {{TRL: Transformers Reinforcement Learning}},
  author  = {von Werra, Leandro and Belkada, Younes and Tunstall, Lewis and Beeching, Edward and Thrush, Tristan and
             Lambert, Nathan and Huang, Shengyi and Rasul, Kashif and Gallouédec, Quentin},
  license = {Apache-2.0},
  url     = {https://github.com/huggingface/trl},
  year    = {2020}
}"""


def hub_id(name: str | None) -> str | None:
    """`name` where it can be that of a repository of the Hub; `None` for a folder, a file and nothing."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if not name or os.path.exists(name) else name


@lru_cache
def license_of(model: str) -> dict[str, str]:
    """The licence keys of the card of a model on the Hub; none where card or Hub cannot be read."""
    try:
        data = ModelCard.load(model, ignore_metadata_errors=True).data
    except (OSError, ValueError):
        return {}
    return {key: data[key] for key in LICENSE_KEYS if data.get(key)}


def last_values(history: list[dict[str, Any]], keys: Iterable[str]) -> dict[str, float]:
    """The last finite value of each of `keys` that was logged."""
    found = {}
    for key in keys:
        values = [
            line[key] for line in history if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])
        ]
        if values:
            found[key] = float(f"{values[-1]:.6g}")
    return found


def eval_results(metrics: dict[str, dict[str, float]], dataset: str | None) -> list[EvalResult]:
    """Metrics by split of the dataset -> entries of the card's `model-index`."""
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


def cell(value: Any) -> str:
    """A value as code in a cell of a Markdown table."""
    return "`" + str(public_value(value)).replace("|", r"\|").replace("\n", " ") + "`"


def changed_fields(method: Method, config: Any) -> list[tuple[str, str, str]]:
    """Name, value and default of each field of a method that is not at its default."""
    others = tuple(f"{name}_" for name in getattr(config, "methods", ()) if name.startswith(f"{method.name}_"))
    rows = []
    for name, field in type(config).__dataclass_fields__.items():
        if name.startswith(f"{method.name}_") and not (others and name.startswith(others)):
            value = getattr(config, name)
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if value != default:
                rows.append((name, cell(value), cell(default)))
    return rows


def described(method: Method, config: Any) -> dict[str, Any]:
    """A method as the template shows it."""
    paper = method.paper
    return {"name": method.name, "title": paper.title, "url": paper.url, "changed": changed_fields(method, config)}


def papers_of(trainer_paper: dict[str, str], methods: list[Method]) -> list[Paper]:
    """The trainer's paper, if it has one, and those of the methods, each once."""
    papers = [method.paper for method in methods]
    if trainer_paper:
        papers.insert(0, Paper(trainer_paper["id"], trainer_paper["title"], trainer_paper["citation"].strip()))
    return list({paper.arxiv: paper for paper in papers}.values())


def versions() -> dict[str, str]:
    found = {"trl-entropy": __version__}
    found |= {name: metadata.version(package) for name, package in PACKAGES.items()}
    return found | {"Python": platform.python_version()}


def draw_curve(history: list[dict[str, Any]], folder: str) -> str | None:
    """Draws entropy, and reward if there is one, over optimizer steps -> file name, or `None`.

    There is no image before the first log, and none without matplotlib.
    """
    points = {key: [(line["step"], line[key]) for line in history if key in line] for key in ("entropy", "reward")}
    shown = {key: values for key, values in points.items() if values}
    if "entropy" not in shown or find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # an extra of the package

    figure = Figure(figsize=(4.6 * len(shown), 2.9), layout="constrained")
    titles = {"entropy": "token entropy (nats)", "reward": "reward"}
    for axes, (key, values) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        axes.plot(*zip(*values, strict=True), color="C1" if key == "reward" else "C0", marker="." * (len(values) < 3))
        axes.set(title=titles[key], xlabel="optimizer step")
        if min(value for _, value in values) >= 0:
            axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
    figure.savefig(os.path.join(folder, CURVE), dpi=110)
    return CURVE


def build_card(
    *,
    model_name: str,
    model_id: str,
    base_model: str | None,
    dataset_name: str | None,
    license: dict[str, str],
    library_name: str,
    tags: list[str],
    metrics: dict[str, dict[str, float]],
    recipe: dict[str, Any],
    **shown: Any,
) -> ModelCard:
    """The card from its facts; `metrics` are by split, as in `SPLITS`, and `shown` is for the template alone."""
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
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=119).strip(),
        trl_bibtex=TRL_BIBTEX,
        versions=versions(),
        **shown,
    )
