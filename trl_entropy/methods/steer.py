# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""STEER: give each token less weight the more its update would change entropy.

How it departs from GRPO:
1. Each token gets an estimate Ω of the entropy change that its policy gradient causes.
2. Its loss is weighted by exp(-α |Ω| / max |Ω|), from 1 for no change down to `steer_lambda_min`.
3. The weighted loss is not renormalized, so the mean weight, which is logged, lowers the effective learning rate.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..functional import discriminator, masked_max, mean_discriminator
from ..paper import Paper
from ..settings import checked, one_of
from ..signs import Sign
from ..tokens import TokenBatch
from .base import Logs, Method


RELEASED_FLOOR = 0.02  # smallest divisor in the released code


@dataclass
class SteerConfig:
    steer_omega: Literal["theorem", "exact", "released"] = field(
        default="theorem",
        metadata={
            "help": "STEER: estimate of a token's entropy change. `theorem`: the paper's. `exact`: exact to first "
            "order. `released`: that of the released code, which divides the theorem's by the token's probability."
        },
    )
    steer_mapping: Literal["exp", "linear"] = field(
        default="exp",
        metadata={"help": "STEER: mapping of the entropy change to a weight. `linear` is only in the code."},
    )
    steer_lambda_min: float = field(
        default=0.7, metadata={"help": "STEER: weight of the token that changes entropy most, in (0, 1]."}
    )
    steer_lambda_max: float = field(
        default=1.0, metadata={"help": "STEER: weight of the token that changes entropy least. `linear` mapping only."}
    )
    steer_scope: Literal["world", "micro_batch"] = field(
        default="world",
        metadata={
            "help": "STEER: tokens over which the extremes are taken. `world`: the micro-batches of all processes. "
            "`micro_batch`: one process' micro-batch."
        },
    )


def theorem_omega(tokens: TokenBatch) -> Tensor:
    """(B, T) first-order entropy change, up to the factor -η/L: 1[has gradient] r A π (1 - π)(log π + H).

    π is the current probability of the sampled token and H the current entropy. Clipped and masked tokens have no
    gradient and change nothing.
    """
    probability = tokens.logps.exp()
    omega = tokens.ratio * tokens.advantages * probability * (1 - probability) * (tokens.logps + tokens.entropy)
    return omega.masked_fill(~tokens.has_gradient, 0)


def exact_omega(tokens: TokenBatch) -> Tensor:
    """(B, T) first-order entropy change of the token's whole update: 1[has gradient] A r (S - N), up to the factor -η.

    The theorem considers only the sampled token's logit; this considers all logits.
    """
    mean = mean_discriminator(tokens.entropy, tokens.sum_sq_probs, tokens.sum_sq_probs_log_probs)
    omega = tokens.advantages * tokens.ratio * (discriminator(tokens.logps, tokens.entropy) - mean)
    return omega.masked_fill(~tokens.has_gradient, 0)


def released_omega(tokens: TokenBatch) -> Tensor:
    """(B, T) estimate of the released code: A / π_old · π (1 - π)(log π + H_old), with its clamps."""
    probability = tokens.logps.exp().clamp(1e-8, 1 - 1e-8)
    old_probability = tokens.old_logps.exp().clamp(1e-8, 1)
    slope = probability * (1 - probability) * (probability.log() + tokens.old_entropy)
    return tokens.advantages / old_probability * slope


OMEGAS = {"theorem": theorem_omega, "exact": exact_omega, "released": released_omega}


def exp_weights(size: Tensor, largest: Tensor, lambda_min: float) -> Tensor:
    """(B, T) |Ω| -> (B, T) weights λ_min^(|Ω| / max |Ω|); all 1 if no token changes entropy."""
    ratio_to_largest = (size / largest.clamp(min=torch.finfo(size.dtype).tiny)).clamp(0, 1)
    return torch.exp(math.log(lambda_min) * ratio_to_largest)


def linear_weights(size: Tensor, smallest: Tensor, largest: Tensor, lambda_min: float, lambda_max: float) -> Tensor:
    """(B, T) |Ω| -> (B, T) weights, λ_max at the smallest and λ_min at the largest; their mean if all are equal."""
    width = largest - smallest
    position = torch.where(width > 0, (size - smallest) / width, 0.5)
    return lambda_max - position.clamp(0, 1) * (lambda_max - lambda_min)


class Steer(Method):
    """Weights each token's policy loss by how little it changes entropy.

        λ_t = exp(-α |Ω_t| / max |Ω|),  α = -ln λ_min,  Ω_t = -(η/L) 1[has gradient] r A π (1 - π)(log π + H)

    The formula is that of the paper's fourth version, according to three independent sources; η/L cancels. Weights
    have no gradient. To match the released code: `steer_omega: released`, `steer_lambda_min: 0.8`,
    `steer_scope: micro_batch`.
    """

    name = "steer"
    summary = "gives tokens less weight the more they would change entropy"
    checked_against = "the paper's formula, as three secondary sources give it"
    config = SteerConfig
    no_knob = "its strength moves entropy by less than the seed does"
    paper = Paper(
        "2510.10150",
        "Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective",
        """@article{hao2025rethinking,
    title   = {Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective},
    author  = {Zhezheng Hao and Hong Wang and Haoyang Liu and Jian Luo and Jiarui Yu and Hande Dong and Qiang Lin
               and Can Wang and Jiawei Chen},
    journal = {arXiv preprint arXiv:2510.10150},
    year    = {2025}
}""",
    )
    idle = (Sign({"weight_min": (1, 1), "weight_max": (1, 1)}, "lower `steer_lambda_min`: all weights are 1"),)
    strong = (Sign({"weight_mean": (0, 0.5)}, "raise `steer_lambda_min`"),)

    def __init__(self, config):
        self.omega = OMEGAS[one_of(config, "steer_omega", *OMEGAS)]
        self.needs = ("second_moments",) if self.omega is exact_omega else ()
        self.mapping = one_of(config, "steer_mapping", "exp", "linear")
        self.lambda_max = checked(config, "steer_lambda_max", lambda value: 0 < value < math.inf, "a number > 0")
        below, accepted = 1, "a weight in (0, 1]"
        if self.mapping == "linear":
            below, accepted = self.lambda_max, f"a weight in (0, `steer_lambda_max`], which is {self.lambda_max!r}"
        self.lambda_min = checked(config, "steer_lambda_min", lambda value: 0 < value <= below, accepted)
        self.floor = RELEASED_FLOOR if self.omega is released_omega else 0.0
        self.scope = one_of(config, "steer_scope", "world", "micro_batch")

    def check(self, config) -> list[str]:
        found = []
        if self.lambda_min == (self.lambda_max if self.mapping == "linear" else 1):
            found = [f"Method 'steer' gives all tokens one weight, since `steer_lambda_min` is {self.lambda_min!r}."]
        if self.mapping != "linear" and self.lambda_max != SteerConfig.steer_lambda_max:
            found.append(
                f"`steer_lambda_max` is set to {self.lambda_max!r}, but `steer_mapping` is not 'linear': it does "
                "nothing."
            )
        return found

    @torch.no_grad()
    def token_advantages(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        world = tokens.scope(self.scope)
        size = self.omega(tokens).abs().nan_to_num(nan=0.0, posinf=torch.finfo(tokens.logps.dtype).max)
        largest = masked_max(size, tokens.in_loss, world)
        if self.mapping == "exp":
            weights = exp_weights(size, largest.clamp(min=self.floor), self.lambda_min)
        else:
            smallest = -masked_max(-size, tokens.in_loss, world)
            weights = linear_weights(size, smallest, largest, self.lambda_min, self.lambda_max)
        logged = weights.masked_fill(tokens.mask & ~tokens.in_loss, torch.nan)
        return tokens.advantages * weights, {"weight_mean": logged, "weight_min": logged, "weight_max": logged}
