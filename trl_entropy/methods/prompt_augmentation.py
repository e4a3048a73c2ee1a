# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prompt augmentation: ask the same problem in many formats, so that completions stay diverse.

How it departs from GRPO:
1. For each prompt of a generation batch one of several templates is drawn. All completions of the prompt share it.
2. What keeps to the format of its template is rewarded beside what is right.
3. Nothing holds the policy to a reference: the authors train without a KL term.

The authors' wording is not used: the templates below are ours, for the same kinds of formats.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..tokens import Rollouts
from .base import Method, Paper, checked, non_negative


@dataclass(frozen=True)
class Template:
    """How a problem is put: the system's text, the user's with `{prompt}`, and the opening of the assistant's turn.

    `markers` are texts that a well-formed completion has exactly once, the opening not counted.
    """

    system: str = ""
    user: str = "{prompt}"
    opening: str = ""
    markers: tuple[str, ...] = ()

    def apply(self, prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        if isinstance(prompt, str):
            parts = [self.system, self.user.replace("{prompt}", prompt), self.opening]
            return "\n\n".join(part for part in parts if part)
        messages = [message for message in prompt if not (self.system and message["role"] == "system")]
        last = max(index for index, message in enumerate(messages) if message["role"] == "user")
        messages[last] = {**messages[last], "content": self._put(messages[last]["content"])}
        before = [{"role": "system", "content": self.system}] if self.system else []
        after = [{"role": "assistant", "content": self.opening}] if self.opening else []
        return [*before, *messages, *after]

    def _put(self, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        if isinstance(content, str):
            return self.user.replace("{prompt}", content)
        texts = [index for index, part in enumerate(content) if part["type"] == "text"]
        return [
            {**part, "text": self.user.replace("{prompt}", part["text"])} if index in texts[-1:] else part
            for index, part in enumerate(content)
        ]

    def score(self, text: str) -> float:
        """Share of the markers that `text` has exactly once; 1 for a template without any."""
        if not self.markers:
            return 1.0
        return sum(text.count(marker) == 1 for marker in self.markers) / len(self.markers)


BOXED = r"Give the result in \boxed{}."
TAGGED = r"First reason between <think> and </think>, then give the result in \boxed{} between <answer> and </answer>."
LINED = TAGGED + " Put each of these four tags on a line of its own."
CHECKED = (
    r"Solve the problem between <solution> and </solution> with the result in \boxed{}. Then go over your work between "
    "<check> and </check>, and begin that part with the words: Let me verify"
)
LINE_MARKERS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
TAG_MARKERS = ("<think>", "</think>", "<answer>", "</answer>")
CHECK_MARKERS = ("<solution>", "</solution>", "<check>\nLet me verify", "</check>")

TEMPLATES = {
    "boxed": Template(user=f"{{prompt}}\n\n{BOXED}"),
    "boxed_system": Template(system=f"You solve mathematical problems. {BOXED}"),
    "boxed_steps": Template(user=f"{{prompt}}\n\nWork it out one step at a time. {BOXED}"),
    "boxed_formal": Template(user=f"Problem:\n{{prompt}}\n\nWrite a rigorous solution. {BOXED}"),
    "boxed_opened": Template(user=f"{{prompt}}\n\n{BOXED}", opening="Let us take this one step at a time."),
    "lines": Template(system=LINED, markers=LINE_MARKERS),
    "lines_opened": Template(system=LINED, opening="<think>\n", markers=LINE_MARKERS[1:]),
    "tags": Template(system=TAGGED, markers=TAG_MARKERS),
    "tags_opened": Template(system=TAGGED, opening="<think>", markers=TAG_MARKERS[1:]),
    "phrase": Template(
        user="{prompt}\n\nEnd with the sentence: The final answer is \\boxed{...}.", markers=("The final answer is",)
    ),
    "phrase_question": Template(
        user="Question: {prompt}\n\nReason first, and close with: So the result is \\boxed{...}.\n\nReasoning:",
        markers=("So the result is",),
    ),
    "checked": Template(system=CHECKED, markers=CHECK_MARKERS),
    "checked_opened": Template(system=CHECKED, opening="<solution>", markers=CHECK_MARKERS[1:]),
}


@dataclass
class PromptAugmentationConfig:
    prompt_augmentation_templates: dict | None = field(
        default=None,
        metadata={
            "help": "Prompt augmentation: templates by name, each a mapping of `system`, `user` (with {prompt}), `opening` "
            "and `markers`. None: the thirteen of this package."
        },
    )
    prompt_augmentation_eval: str | None = field(
        default=None,
        metadata={"help": "Prompt augmentation: the template in evaluation. None: the first."},
    )
    prompt_augmentation_format_weight: float = field(
        default=1.0, metadata={"help": "Prompt augmentation: weight of the format among the rewards."}
    )


def read_template(name: str, fields: Any) -> Template:
    """A template from a mapping. Raises `ValueError` that names the template and what is wrong."""
    accepted = "system, user, opening, markers"
    where = f"`prompt_augmentation_templates` entry {name!r}"
    if not isinstance(fields, dict) or not fields.keys() <= {"system", "user", "opening", "markers"}:
        raise ValueError(f"{where} must be a mapping of {accepted}, got {fields!r}.")
    markers = fields.get("markers", [])
    texts = [fields[key] for key in ("system", "user", "opening") if key in fields]
    if not isinstance(markers, list) or not all(isinstance(text, str) and text for text in [*texts, *markers]):
        raise ValueError(f"{where} must hold texts, and a list of texts as `markers`, got {fields!r}.")
    if "{prompt}" not in fields.get("user", "{prompt}"):
        raise ValueError(f"{where} must have {{prompt}} in `user`, got {fields['user']!r}.")
    return Template(**{**fields, "markers": tuple(markers)})


def drawn(count: int, draw: tuple[int, int], prompt: str | list[dict[str, Any]]) -> int:
    """A number below `count` that depends on the arguments alone, uniform over prompts; the same in every process."""
    if not isinstance(prompt, str):
        prompt = "\n".join(str(text) for message in prompt for text in texts_of(message["content"]))
    digest = hashlib.blake2b(f"{draw[0]} {draw[1]} {prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def texts_of(content: str | list[dict[str, Any]]) -> list[str]:
    """The texts of a message, without its images."""
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


class PromptAugmentation(Method):
    """Draws a template for each prompt, uniformly, and rewards what keeps to its format.

        R = 1[right] + w · (share of the template's markers that occur exactly once)

    Templates without markers give 1, so that all have one scale. A template is drawn anew for each generation batch,
    from seed, step and prompt, and so is the same for all completions of a prompt. Evaluation has one fixed template.
    """

    name = "prompt_augmentation"
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
            config, "prompt_augmentation_templates", lambda value: value is None or (isinstance(value, dict) and value),
            "a mapping of names to templates",
        )  # fmt: skip
        self.templates = TEMPLATES if given is None else {name: read_template(name, given[name]) for name in given}
        names = list(self.templates)
        self.fixed = checked(
            config, "prompt_augmentation_eval", lambda value: value is None or value in names,
            "one of the templates " + ", ".join(map(repr, names)),
        ) or names[0]  # fmt: skip
        self.weight = non_negative(config, "prompt_augmentation_format_weight")

    def setup(self, decode):
        self._decode = decode

    def prompts(self, rows, draw, training):
        names = list(self.templates)
        found = []
        for row in rows:
            name = names[drawn(len(names), draw, row["prompt"])] if training else self.fixed
            found.append({**row, "prompt": self.templates[name].apply(row["prompt"]), "format_name": name})
        return found

    def reward(self, completion_ids, format_name, **columns):
        scores = [
            self.templates[name].score(self._decode(ids))
            for ids, name in zip(completion_ids, format_name, strict=True)
        ]
        self._drawn = format_name
        return [self.weight * score for score in scores]

    def rollout_metrics(self, rollouts: Rollouts) -> dict[str, Tensor]:
        found = {}
        for name in self.templates:
            own = torch.tensor([drawn == name for drawn in self._drawn], device=rollouts.mask.device)
            found[f"share_{name}"] = own.float()
            if rollouts.entropy is not None:
                found[f"entropy_{name}"] = rollouts.entropy.masked_fill(~own.unsqueeze(1), torch.nan)
        return found
