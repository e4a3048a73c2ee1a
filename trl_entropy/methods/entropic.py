# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""EntroPIC: hold mean entropy at a target by reinforcing or weakening the very likely tokens.

How it departs from GRPO:
1. The loss gets a term on tokens whose probability is above a threshold, whatever the sign of their advantage.
2. The coefficient of the term comes from a proportional-integral controller on mean entropy. It has either sign:
   likely tokens are reinforced while entropy is above the target and weakened while it is below.
3. The term has no PPO clip.

Unlike `entropy_controller: pi`, which drives TRL's entropy bonus, it has no gradient through entropy and can lower
entropy as well as raise it. The target depends on model and temperature: log `entropy` for 50 steps first.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..collectives import SINGLE_PROCESS
from ..functional import StepMean, accumulator_dtype
from ..knob import Knob
from ..paper import Paper
from ..settings import checked, non_negative
from ..signs import EntropyBand, Sign
from ..tokens import TokenBatch
from .base import Logs, Method


LARGEST_LOG_RATIO = 20.0  # beyond it r stops growing and has no gradient (released code)
LARGEST_THRESHOLD = 0.9999  # float32 log-probabilities do not resolve probabilities closer to 1


@dataclass
class EntropicConfig:
    entropic_target: float = field(
        default=0.1,
        metadata={
            "help": "EntroPIC: target mean token entropy, in nats. The default is the authors' for Qwen3-8B-Base at "
            "temperature 0.6; other models and temperatures need their own."
        },
    )
    entropic_kp: float = field(default=1.0, metadata={"help": "EntroPIC: proportional gain, per nat."})
    entropic_ki: float = field(default=0.01, metadata={"help": "EntroPIC: integral gain, per nat and optimizer step."})
    entropic_threshold: float = field(
        default=0.95, metadata={"help": "EntroPIC: probability τ above which the term acts on a token."}
    )


class EntropyController:
    """α = clip(K_p e + K_i E, -1, 1), e = entropy - target in nats, E = Σ e over optimizer steps.

    E stands still while |K_p e + K_i E| > 1 and e points further out, so a long saturation leaves nothing to undo.
    """

    def __init__(self, target: float, kp: float, ki: float):
        self.target, self.kp, self.ki = target, kp, ki
        self.integral = 0.0

    def _unclipped(self, error: float) -> float:
        return self.kp * error + self.ki * self.integral

    def coefficient(self, entropy: float) -> float:
        """α at this entropy; from the sum alone if the entropy is not finite."""
        error = entropy - self.target if math.isfinite(entropy) else 0.0
        return min(max(self._unclipped(error), -1.0), 1.0)

    def add(self, entropy: float) -> None:
        """Adds the mean entropy of an optimizer step to the sum."""
        error = entropy - self.target
        unclipped = self._unclipped(error)
        if not (abs(unclipped) > 1 and unclipped * error > 0):
            self.integral += error


def likely_terms(logps: Tensor, old_logps: Tensor, advantages: Tensor, likely: Tensor) -> Tensor:
    """(B, T) -> (B, T) -r |A| of the likely tokens, 0 elsewhere, with gradient; r = exp(clip(ℓ - ℓ_old, ±20))."""
    log_ratio = torch.where(likely, logps - old_logps, 0).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return -log_ratio.exp() * torch.where(likely, advantages.abs(), 0)


class Entropic(Method):
    """Adds α L₊ to the loss, where α steers mean entropy H̄ to the target H*.

        L₊ = -Σ_hot r |A| / max(1, #hot),   hot = {t : sg(π_t) > τ}
        α  = clip(K_p (H̄ - H*) + K_i E, -1, 1),   E <- E + (H̄ of the step - H*) after each optimizer step

    Follows the released code, without the paper's text. Departs from it: H̄ and the mean over hot tokens run over all
    processes; E grows once per optimizer step, by the mean of the step; E stands still while α is saturated and the
    error points further out; E is saved with checkpoints; denominators have no 1e-8.

    The term steers entropy and is no policy loss. So it also acts on hot tokens that TRL's 80/20 mask and off-policy
    mask take out of the policy loss; the 80/20 mask, which keeps high entropies, would leave hardly any.
    """

    name = "entropic"
    summary = "steers entropy to a target through the weight of likely tokens"
    checked_against = "the released code's formulas"
    config = EntropicConfig
    knob = Knob("entropic_target", "target", low=1e-4, high=100.0, start=0.1, scale="target")
    entropy_band = EntropyBand("entropic_target", "entropic_target")
    paper = Paper(
        "2511.15248",
        "EntroPIC: Towards Stable Long-Term Training of LLMs via Entropy Stabilization with Proportional-Integral "
        "Control",
        """@article{yang2025entropic,
    title   = {EntroPIC: Towards Stable Long-Term Training of LLMs via Entropy Stabilization with
               Proportional-Integral Control},
    author  = {Kai Yang and Xin Xu and Yangkun Chen and Weijie Liu and Jiafei Lyu and Zichuan Lin and Deheng Ye
               and Saiyong Yang},
    journal = {arXiv preprint arXiv:2511.15248},
    year    = {2025}
}""",
    )
    excludes = {
        "aepo": "both steer entropy to a target",
        "adaptive_clip": "both steer entropy to a target",
    }
    idle = (Sign({"likely_fraction": (0, 0)}, "lower `entropic_threshold`: no token is that likely"),)
    strong = (
        Sign({"alpha": (1, 1)}, "raise `entropic_target` or lower `learning_rate`: the controller is at its bound"),
        Sign({"alpha": (-1, -1)}, "lower `entropic_target`: the controller is at its bound"),
    )

    def __init__(self, config):
        target = checked(config, "entropic_target", lambda value: 0 < value < math.inf, "an entropy in nats > 0")
        kp, ki = non_negative(config, "entropic_kp"), non_negative(config, "entropic_ki")
        if not (kp or ki):
            raise ValueError(f"`entropic_ki` must be above 0 if `entropic_kp` is 0, got {ki!r}.")
        self.threshold = checked(
            config,
            "entropic_threshold",
            lambda value: 0 < value <= LARGEST_THRESHOLD,
            f"a probability in (0, {LARGEST_THRESHOLD}]",
        )
        self.controller = EntropyController(target, kp, ki)
        self.step_mean = StepMean()

    def check(self, config) -> list[str]:
        for name, off in (("use_adaptive_entropy", False), ("entropy_coef", 0)):
            if getattr(config, name) != off:
                raise ValueError(
                    f"`{name}` must be {str(off).lower()} with method 'entropic', which steers entropy itself, got "
                    f"{getattr(config, name)!r}."
                )
        return []

    @property
    def target(self) -> float:
        """Target entropy in nats."""
        return self.controller.target

    @target.setter
    def target(self, value: float) -> None:
        self.controller.target = value

    def loss(self, tokens: TokenBatch) -> tuple[Tensor, Logs]:
        likely = tokens.mask & (tokens.logps.detach() > math.log(self.threshold))
        entropy_sum = tokens.entropy.detach().masked_fill(~tokens.mask, 0).sum()
        counts = [tokens.mask.sum(), likely.sum(), torch.ones_like(likely.sum())]
        sums = torch.stack([entropy_sum, *counts]).to(accumulator_dtype(entropy_sum.device))
        total, valid, hot, processes = tokens.world.sum(sums).tolist()
        entropy = total / valid if valid else math.nan
        if tokens.training:
            self._measure(tokens.step, total, valid)
        coefficient = self.controller.coefficient(entropy)
        terms = likely_terms(tokens.logps, tokens.old_logps, tokens.advantages, likely)
        if tokens.engine_ratio is not None:  # the loss multiplies its own terms by it
            terms = torch.where(likely, terms * tokens.engine_ratio, 0)
        # The gradients of the processes are averaged, so each contributes its part of the mean over all of them.
        term = terms.sum() * (processes / max(hot, 1))
        scalars = {
            "integral": self.controller.integral,
            "skipped_fraction": float(valid > 0 and not math.isfinite(entropy)),
        }
        logs = {key: torch.tensor(value, device=likely.device) for key, value in scalars.items()}
        # By token, so that forwards of a window count by their tokens, as they do in mean entropy.
        logs |= {
            "alpha": torch.full_like(tokens.entropy, coefficient),
            "likely_fraction": likely,
            "selected_tokens": likely,
        }
        return coefficient * term, logs

    def _measure(self, step: int, total: float, valid: float) -> None:
        """Adds a forward's sum over all processes to the mean of its step, and a finished step to E.

        A sum that is not finite counts for nothing.
        """
        if math.isfinite(total):
            finished = self.step_mean.add(step, torch.tensor(total, dtype=torch.float64), int(valid), SINGLE_PROCESS)
            if finished is not None:
                self.controller.add(finished)

    def state_dict(self):
        return {"integral": self.controller.integral, "step_mean": self.step_mean.state_dict()}

    def load_state_dict(self, state):
        self.controller.integral = state["integral"]
        self.step_mean.load_state_dict(state["step_mean"])
