# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prompt augmentation: ask the same problem in many formats, so that completions stay diverse.

How it departs from GRPO:
1. For each prompt of a generation batch, one of several templates is drawn. All completions of the prompt share it.
2. A second reward is added for keeping to the format of the template.
3. The authors train without a KL term, so nothing ties the policy to a reference.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from ..paper import Paper
from ..settings import checked, non_negative
from .base import Logs, Method
from .pieces import Pieces
from .prompt_templates import TEMPLATES, read_template


@dataclass
class PromptAugmentationConfig:
    prompt_augmentation_templates: dict | None = field(
        default=None,
        metadata={
            "help": "Prompt augmentation: templates by name, each a mapping of `system`, `user` (with {prompt}), "
            "`prefill` and `markers`. None: the thirteen of this package."
        },
    )
    prompt_augmentation_eval: str | None = field(
        default=None,
        metadata={"help": "Prompt augmentation: template used in evaluation. None: the first."},
    )
    prompt_augmentation_format_weight: float = field(
        default=1.0, metadata={"help": "Prompt augmentation: weight of the format reward."}
    )


def drawn(count: int, draw: tuple[int, int], prompt: str | list[dict[str, Any]]) -> int:
    """A number below `count` that depends only on the arguments: uniform over prompts, equal in every process."""
    if not isinstance(prompt, str):
        prompt = "\n".join(str(text) for message in prompt for text in texts_of(message.get("content")))
    digest = hashlib.blake2b(f"{draw[0]} {draw[1]} {prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def texts_of(content: str | list[dict[str, Any]] | None) -> list[str]:
    """The texts of a message, without its images; empty if the message only calls tools."""
    if content is None:
        return []
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def has_images(row: dict[str, Any]) -> bool:
    """Whether the prompt of a row has images, in their own columns or in its messages."""
    if "image" in row or "images" in row:
        return True
    contents = [] if isinstance(row["prompt"], str) else [message.get("content") for message in row["prompt"]]
    return any(part["type"] == "image" for content in contents if isinstance(content, list) for part in content)


class PromptAugmentation(Method):
    """Draws a template for each prompt, uniformly, and rewards completions that keep to its format.

        R = 1[correct] + w · (ratio of the template's markers that occur exactly once)

    Templates without markers give 1, so that all templates have the same scale. The template is drawn for each
    generation batch from seed, step and prompt, so all completions of a prompt share it. Evaluation uses one fixed
    template. Prompts with images skip templates with a prefill. The entropy of each template is logged if rollouts are
    scored: with several updates per generation batch, or with a method that needs their entropies.
    """

    name = "prompt_augmentation"
    summary = "asks the same prompt in several formats"
    checked_against = "formulas from paper notes and code"
    config = PromptAugmentationConfig
    no_knob = "a set of templates is not a number"
    paper = Paper(
        "2602.03190",
        "Prompt Augmentation Scales up GRPO Training on Mathematical Reasoning",
        """@article{lu2026prompt,
    title   = {Prompt Augmentation Scales up GRPO Training on Mathematical Reasoning},
    author  = {Wenquan Lu and Hai Huang and Randall Balestriero},
    journal = {arXiv preprint arXiv:2602.03190},
    year    = {2026}
}""",
    )

    def __init__(self, config):
        given = checked(
            config,
            "prompt_augmentation_templates",
            lambda value: value is None or (isinstance(value, dict) and value),
            "a mapping of names to templates",
        )
        self.templates = TEMPLATES if given is None else {name: read_template(name, given[name]) for name in given}
        names = list(self.templates)
        self.fixed = checked(
            config, "prompt_augmentation_eval", lambda value: value is None or value in names,
            "one of the templates " + ", ".join(map(repr, names)),
        ) or names[0]  # fmt: skip
        self.weight = non_negative(config, "prompt_augmentation_format_weight")

    def setup(self, decode):
        self._pieces = Pieces(decode)

    def prompts(self, rows, draw, training):
        found = []
        for row in rows:
            if "format_name" in row:
                raise ValueError(
                    "Method 'prompt_augmentation' adds a column `format_name`, but the dataset already has one: "
                    "rename it."
                )
            names = list(self.templates) if training else [self.fixed]
            if has_images(row):
                names = [name for name in names if not self.templates[name].prefill]
            if not names:
                field_name = "prompt_augmentation_templates" if training else "prompt_augmentation_eval"
                raise ValueError(
                    f"`{field_name}` must name a template without `prefill` for prompts with images, got "
                    f"{list(self.templates) if training else self.fixed!r}."
                )
            name = names[drawn(len(names), draw, row["prompt"])]
            found.append({**row, "prompt": self.templates[name].apply(row["prompt"]), "format_name": name})
        return found

    def reward(  # type: ignore[override] # it names the columns that it takes
        self, completion_ids, token_mask, format_name, old_entropy=None, **columns
    ) -> tuple[list[float | None], Logs]:
        scores = [
            self.templates[name].score("".join(self._pieces(ids, kept)))
            for ids, kept, name in zip(completion_ids, token_mask, format_name, strict=True)
        ]
        logs = {}
        for name in self.templates:
            own = torch.tensor([drawn == name for drawn in format_name])
            logs[f"share_{name}"] = own.float()
            if old_entropy is not None:
                other = ~own.unsqueeze(1).to(old_entropy.device)
                logs[f"entropy_{name}"] = old_entropy.masked_fill(other, torch.nan)
        return [self.weight * score for score in scores], logs
