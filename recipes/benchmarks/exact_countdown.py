# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exact pass@k on Countdown, without sampling: the probabilities of all right completions, summed.

A right answer is one of about twelve per prompt, all known. The thought before it is one chain, and a warm-started
policy gives the answer that it has worked out. So a prompt's probability of a right completion is the sum over its
right answers a of P(chain of a, then a), by teacher forcing, and

    pass@k = 1 - (1 - p)^k,   distinct = Σ_a 1 - (1 - p_a)^k

This leaves out right answers after another thought, such as one with a wrong total. A few completions are sampled to
measure that share (`outside`) and the entropy.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_entropy.countdown.evaluation import sample
from trl_entropy.countdown.model import END
from trl_entropy.countdown.task import chain, prompts, read_answer, solutions


PASSES = (1, 4, 8, 16, 64)
DRAWN = 16  # completions to which `distinct` and `coverage` refer
SAMPLES = 4  # completions per prompt for `entropy` and `outside`


class ExactCountdown:
    """Evaluates a policy on the held-out prompts.

    Args:
        tokenizer: of the policy.
        batch_size: right completions per forward.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, batch_size: int = 512):
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.rows = prompts(held_out=True)
        self.start = len(self.rows[0].text.split())
        pairs = [(index, answer) for index, row in enumerate(self.rows) for answer in solutions(*row)]
        texts = [f"{self.rows[index].text} {chain(answer)} {END}" for index, answer in pairs]
        self.tokens = tokenizer(texts, return_tensors="pt").input_ids  # (A, L): all have the same length
        self.owner = torch.tensor([index for index, _ in pairs])  # (A,)

    def answer_probabilities(self, model: PreTrainedModel, temperatures: tuple[float, ...]) -> list[Tensor]:
        """(A,) probabilities of the right completions, one tensor per temperature."""
        found: list[list[Tensor]] = [[] for _ in temperatures]
        for tokens in self.tokens.split(self.batch_size):
            logits = model(tokens).logits[:, self.start - 1 : -1].float()
            for parts, temperature in zip(found, temperatures, strict=True):
                logps = (logits / temperature).log_softmax(-1)
                parts.append(logps.gather(-1, tokens[:, self.start :, None]).sum((1, 2)))
        return [torch.cat(parts).double().exp() for parts in found]

    def per_prompt(self, values: Tensor) -> Tensor:
        """(A,) values of right answers -> (P,) sums over each prompt's."""
        return torch.zeros(len(self.rows), dtype=values.dtype).index_add(0, self.owner, values)

    def scores(self, answers: Tensor) -> dict[str, float]:
        """Means over prompts, from the (A,) probabilities of the right completions."""
        right = self.per_prompt(answers)
        found = {f"pass@{k}": (1 - (1 - right) ** k).mean().item() for k in PASSES}
        distinct = self.per_prompt(1 - (1 - answers) ** DRAWN)
        count = self.per_prompt(torch.ones_like(answers))
        return found | {"distinct": distinct.mean().item(), "coverage": (distinct / count).mean().item()}

    def sampled(self, model: PreTrainedModel, temperature: float) -> dict[str, float]:
        """`entropy` (nats per token), and `outside`: share of samples that are right after another thought."""
        rows = [row for row in self.rows for _ in range(SAMPLES)]
        completions, entropy = sample(model, self.tokenizer, [row.text for row in rows], temperature)
        outside = 0
        for row, completion in zip(rows, completions, strict=True):
            answer = read_answer(completion, *row)
            outside += answer is not None and completion.strip() != chain(answer)
        return {"entropy": entropy.mean().item(), "outside": outside / len(rows)}

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel, temperatures: tuple[float, ...] = (1.0,)) -> list[dict[str, float]]:
        """One row of scores per temperature. The global random state is restored."""
        found = []
        for temperature, answers in zip(temperatures, self.answer_probabilities(model, temperatures), strict=True):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                drawn = self.sampled(model, temperature)
            found.append({"temperature": temperature, **self.scores(answers), **drawn})
        return found
