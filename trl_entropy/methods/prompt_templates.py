# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The prompt templates of prompt augmentation. Their wording is ours; the kinds of formats are the paper's."""

import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Template:
    """A prompt format.

    Args:
        system: text of the system message, "" for none.
        user: text of the user message; `{prompt}` stands for the problem.
        prefill: text with which the assistant's turn starts, "" for none.
        markers: texts that a well-formed completion contains exactly once. The prefill does not count.
    """

    system: str = ""
    user: str = "{prompt}"
    prefill: str = ""
    markers: tuple[str, ...] = ()

    def apply(self, prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        if isinstance(prompt, str):
            parts = [self.system, self.user.replace("{prompt}", prompt), self.prefill]
            return "\n\n".join(part for part in parts if part)
        messages = [message for message in prompt if not (self.system and message["role"] == "system")]
        last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=None)
        if last is None or messages[last].get("content") is None:
            raise ValueError(f"Method 'prompt_augmentation' needs a user message with text, got {prompt!r}.")
        messages[last] = {**messages[last], "content": self._put(messages[last]["content"])}
        before = [{"role": "system", "content": self.system}] if self.system else []
        after = [{"role": "assistant", "content": self.prefill}] if self.prefill else []
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
        """Ratio of the markers that `text` contains exactly once; 1 for a template without markers."""
        if not self.markers:
            return 1.0
        return sum(text.count(marker) == 1 for marker in self.markers) / len(self.markers)


BOXED = r"Give the result in \boxed{}."
TAGGED = r"First reason between <think> and </think>, then give the result in \boxed{} between <answer> and </answer>."
LINED = TAGGED + " Put each of these four tags on a line of its own."
CHECKED = (
    r"Solve the problem between <solution> and </solution> with the result in \boxed{}. Then go over your work "
    "between <check> and </check>, and begin that part with the words: Let me verify"
)
LINE_MARKERS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
TAG_MARKERS = ("<think>", "</think>", "<answer>", "</answer>")
CHECK_MARKERS = ("<solution>", "</solution>", "<check>\nLet me verify", "</check>")

TEMPLATES = {
    "boxed": Template(user=f"{{prompt}}\n\n{BOXED}"),
    "boxed_system": Template(system=f"You solve mathematical problems. {BOXED}"),
    "boxed_steps": Template(user=f"{{prompt}}\n\nWork it out one step at a time. {BOXED}"),
    "boxed_formal": Template(user=f"Problem:\n{{prompt}}\n\nWrite a rigorous solution. {BOXED}"),
    "boxed_opened": Template(user=f"{{prompt}}\n\n{BOXED}", prefill="Let us take this one step at a time."),
    "lines": Template(system=LINED, markers=LINE_MARKERS),
    "lines_opened": Template(system=LINED, prefill="<think>\n", markers=LINE_MARKERS[1:]),
    "tags": Template(system=TAGGED, markers=TAG_MARKERS),
    "tags_opened": Template(system=TAGGED, prefill="<think>", markers=TAG_MARKERS[1:]),
    "phrase": Template(
        user="{prompt}\n\nEnd with the sentence: The final answer is \\boxed{...}.", markers=("The final answer is",)
    ),
    "phrase_question": Template(
        user="Question: {prompt}\n\nReason first, and close with: So the result is \\boxed{...}.\n\nReasoning:",
        markers=("So the result is",),
    ),
    "checked": Template(system=CHECKED, markers=CHECK_MARKERS),
    "checked_opened": Template(system=CHECKED, prefill="<solution>", markers=CHECK_MARKERS[1:]),
}


def read_template(name: str, fields: Any) -> Template:
    """A template from a mapping. Raises `ValueError` for an unknown key or a value of the wrong type."""
    where = f"`prompt_augmentation_templates` entry {name!r}"
    if isinstance(fields, dict) and "opening" in fields and "prefill" not in fields:
        fields = {"prefill" if key == "opening" else key: value for key, value in fields.items()}
        warnings.warn(f"{where}: the key `opening` is deprecated: use `prefill`.", FutureWarning, stacklevel=2)
    if not isinstance(fields, dict) or not fields.keys() <= {"system", "user", "prefill", "markers"}:
        raise ValueError(f"{where} must be a mapping of system, user, prefill, markers, got {fields!r}.")
    markers = fields.get("markers", [])
    texts = [fields[key] for key in ("system", "user", "prefill") if key in fields]
    if not isinstance(markers, list) or not all(isinstance(text, str) and text for text in [*texts, *markers]):
        raise ValueError(f"{where} must hold texts, and a list of texts as `markers`, got {fields!r}.")
    if "{prompt}" not in fields.get("user", "{prompt}"):
        raise ValueError(f"{where} must have {{prompt}} in `user`, got {fields['user']!r}.")
    return Template(**{**fields, "markers": tuple(markers)})
