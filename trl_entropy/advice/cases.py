# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Cases, and what to try first in each. Grades of evidence are those of `docs/which_method.md`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ..inert import single_update


WITHOUT_CLIP = ("sapo", "vespo")  # losses that no bound of the ratio clips


def symmetric_clip(setup: SimpleNamespace) -> bool:
    """Whether a wider upper clip would change the loss: ratios differ from 1, and both sides clip alike."""
    clips = setup.loss_type not in WITHOUT_CLIP and not setup.bounded
    raised = setup.epsilon_high is not None and setup.epsilon_high > setup.epsilon
    return clips and not raised and not single_update(setup) and setup.epsilon < 1


def several_completions(setup: SimpleNamespace) -> bool:
    return setup.per_device_train_batch_size * setup.world_size > 1


def always(setup: SimpleNamespace) -> bool:
    return True


@dataclass(frozen=True)
class Choice:
    """One thing to try.

    Attributes:
        name: the method or setting, as Markdown.
        why: sentences.
        evidence: who reports the effect: the grade, and what was measured here.
        methods: entries of `methods`. Without any, those of the recipe stay.
        settings: fields to set.
        when: what must hold, as the end of a sentence; "" if nothing.
        applies: whether it holds. `setup` has the fields of a recipe with their defaults.
        cost: what it computes in addition.
    """

    name: str
    why: str
    evidence: str
    methods: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    when: str = ""
    applies: Callable[[SimpleNamespace], bool] = always
    cost: str = "nothing"


@dataclass(frozen=True)
class Case:
    """A kind of run.

    Attributes:
        title: what it is.
        choices: the first of them that applies is the first choice. The last one always does.
        then: what to try next, as Markdown.
        recipe: the recipe of ours with the first settings.
        requires: fields of the training that the case needs.
        suggests: further such fields, for a recipe that does not set them.
        note: what to know, as sentences.
        command: the command that trains.
    """

    title: str
    choices: tuple[Choice, ...]
    then: str
    recipe: str
    requires: Mapping[str, Any] = field(default_factory=dict)
    suggests: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    command: str = "grpo"


TOY = "On the toy task here it trades pass@1 for pass@16 along one front."
CLIP_HIGHER = Choice(
    name="`epsilon_high: 0.28`",
    why="Clip-higher: rare tokens with a positive advantage may grow further before the clip stops them.",
    evidence="B",
    settings={"epsilon_high": 0.28},
    when="a generation batch serves several updates and the clip is symmetric",
    applies=symmetric_clip,
)
CLIP_COV = Choice(
    name="`clip_cov`",
    why="It acts with one update per generation batch too, TRL's default. A few tokens of high covariance, which "
    "lower entropy most, lose their gradient.",
    evidence=f"B. {TOY}",
    methods=("clip_cov",),
    when="a micro-batch has more than one completion",
    applies=several_completions,
)
CLIP_B = Choice(
    name="`clip_b`",
    why="It compares tokens. `clip_cov` compares completions, and here each micro-batch has one.",
    evidence=f"A+. {TOY}",
    methods=("clip_b",),
    when="each micro-batch is one completion",
)
ENTROPY = (CLIP_HIGHER, CLIP_COV, CLIP_B)
LORA = {"lora_r": 32, "lora_alpha": 64, "lora_target_modules": ["all-linear"]}
THERMOSTAT = "`entropy_keep: 0.7` sets the strength by itself"

CASES: dict[str, Case] = {
    "math": Case(
        title="mathematics on 8 GPUs",
        choices=ENTROPY,
        then=f"{THERMOSTAT}; `kl_cov` with several updates per generation batch; `pass_at_k` if `pass@k` does not "
        "rise with `pass@1`",
        recipe="clip_cov",
    ),
    "agents": Case(
        title="several turns with tools",
        choices=(
            Choice(
                name="`agentic_aepo`",
                why="Entropy jumps after tool results. It scales advantages by the entropy of the tokens. With "
                "several updates per generation batch it also keeps the gradient of clipped tokens with a positive "
                "advantage.",
                evidence="A+. On a small task with a tool here, three seeds cannot tell it from plain GRPO.",
                methods=("agentic_aepo",),
                cost="one forward without gradient per generation batch, free if TRL scores its rollouts",
            ),
        ),
        then="`epo`; `empg`",
        recipe="agents_tools",
        note="Rewards must read the last message of a completion, as `answer_line_accuracy_reward` does. TRL's "
        "`accuracy_reward` reads the first, which may be a tool call.",
    ),
    "shorter": Case(
        title="answers that are longer than they need to be",
        choices=(
            Choice(
                name="`pear`",
                why="It lowers the reward of correct answers whose thinking has high entropy.",
                evidence="A. Measured here on a small task: completions get shorter earlier, with no loss of accuracy "
                "visible over three seeds.",
                methods=("pear",),
                cost="one forward without gradient per generation batch, free if TRL scores its rollouts",
            ),
        ),
        then="`canon` with `canon_metric: length`",
        recipe="pear",
        note="Completions must have a `</think>`; `pear_think_end` changes the tag.",
    ),
    "distillation": Case(
        title="train on selected tokens of a student",
        choices=(
            Choice(
                name="`tip_rule: soft_or`",
                why="It trains on the half of the tokens on which the student is uncertain or far from the teacher. "
                "That saves time in the backward of both heads.",
                evidence="A. On the toy task here half of the tokens do as well as all, a fifth does not.",
                settings={"tip_rule": "soft_or", "tip_ratio": 0.5},
                cost="less than all tokens: 0.76 of the time of a step, on a CPU",
            ),
        ),
        then="`tip_ratio: 0.2` with `tip_divergence_clip_quantile: 0.98`; `tip_rule: none` to compare",
        recipe="tip",
        command="distillation",
    ),
    "lora": Case(
        title="adapters instead of all weights",
        choices=ENTROPY,
        then=f"{THERMOSTAT}; a target of `entropic` or `aepo`, in nats from a logged run",
        recipe="lora",
        requires={"use_peft": True},
        suggests=LORA,
        note="No method looks at weights. Entropy usually falls more slowly with LoRA.",
    ),
    "small_gpu": Case(
        title="one GPU of 16 to 24 GB",
        choices=ENTROPY,
        then=f"{THERMOSTAT}; `nsr`, which needs no group baseline",
        recipe="small_gpu",
        suggests={"use_peft": True, **LORA, "dtype": "bfloat16"},
        note="Micro-batches are small, so ratios of tokens must be larger than the papers'.",
    ),
    "cpu": Case(
        title="no accelerator",
        choices=ENTROPY,
        then=THERMOSTAT,
        recipe="cpu",
        requires={"use_cpu": True, "bf16": False, "fp16": False, "use_vllm": False},
        suggests={"gradient_checkpointing": False},
        note="For a run of minutes, see `trl-entropy quickstart`.",
    ),
}
