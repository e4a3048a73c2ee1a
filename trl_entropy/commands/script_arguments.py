# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The arguments of TRL's GRPO script, and those that make an agent."""

from dataclasses import dataclass, field

from trl.scripts.grpo import GRPOScriptArguments


@dataclass
class AgentScriptArguments(GRPOScriptArguments):
    """[`~trl.scripts.grpo.GRPOScriptArguments`] with the tools of an agent."""

    tools: list[str] | None = field(
        default=None,
        metadata={
            "help": "Functions that the policy may call: `calculator`, or a dotted import path of your own. TRL runs "
            "them between the policy's turns."
        },
    )
    environment_factory: str | None = field(
        default=None,
        metadata={"help": "Class or function that makes an environment with tools and state, by dotted path."},
    )
