# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Records the policy's entropies while it generates, from the logits it samples from, without another forward.

A hook reads the logits of each forward of `generate` before penalties, top-k and top-p change them. The entropies are
those of a forward over the finished completion, at the cost of one softmax per token. vLLM gives the log-probabilities
of its likeliest tokens instead, after temperature and top-p, so entropies of those are a lower bound.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


# Ways of generating in which a forward does not add exactly one token to each row.
NOT_A_TOKEN_PER_FORWARD = ("num_beams", "num_return_sequences", "prompt_lookup_num_tokens", "prefill_chunk_size")


def entropy_of_logits(logits: Tensor, temperature: float) -> Tensor:
    """(..., V) -> (...) entropy in nats, float32, of softmax(logits / temperature).

    A token of probability 0 adds nothing, also with a logit of -inf.
    """
    logps = (logits.float() / temperature).log_softmax(-1).clamp(min=torch.finfo(torch.float32).min)
    return -(logps.exp() * logps).sum(-1)


class EntropyRecorder:
    """A forward hook that keeps the entropy (B,) of each step of generation. `asker` is named in errors."""

    def __init__(self, temperature: float, asker: str = "`record_entropies`"):
        self.temperature, self.asker = temperature, asker
        self.steps: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple, output) -> None:
        self.steps.append(entropy_of_logits(output.logits[:, -1], self.temperature))

    def rows(self, completion_ids: list[list[int]]) -> list[list[float]]:
        """The entropies (nats) of the tokens of B completions, which may have ended early.

        Raises:
            `RuntimeError`: generation did not make one forward for each token of each completion.
        """
        steps, longest = len(self.steps), max(map(len, completion_ids), default=0)
        rows = {len(step) for step in self.steps}
        # If processes generate in step, one that is done makes more forwards for the others. These come last.
        if steps < longest or rows - {len(completion_ids)}:
            raise RuntimeError(
                f"{self.asker} saw {steps} forwards of {sorted(rows)} rows while {len(completion_ids)} completions of "
                f"up to {longest} tokens were generated. It needs one forward for each token: check "
                f"`generation_kwargs`, or do without {self.asker}."
            )
        values = torch.stack(self.steps, dim=1).tolist() if self.steps else [[]] * len(completion_ids)
        return [row[: len(ids)] for row, ids in zip(values, completion_ids, strict=True)]


@contextmanager
def recording(model: nn.Module, *settings: Any) -> Iterator[EntropyRecorder]:
    """Records the entropies of the forwards of `model`, or of its base model with an adapter, within the context.

    `settings` are those of [`EntropyRecorder`].
    """
    recorder = EntropyRecorder(*settings)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hook = base.register_forward_hook(recorder)
    try:
        yield recorder
    finally:
        hook.remove()


def top_entropy(logps: list[float | None], count: int) -> float:
    """-Σ p log p in nats over the first `count` log-probabilities, the likeliest first; `None` stands for NaN."""
    return -math.fsum(math.exp(logp) * logp for logp in logps[:count] if logp is not None and logp > -math.inf)


@contextmanager
def recording_top(engine: Any, count: int) -> Iterator[list[list[float]]]:
    """Within the context, TRL's vLLM backend returns more log-probabilities, and the list gets the entropies of them.

    TRL takes the first log-probability of a token. With more than one that is the likeliest token's, so TRL is given
    that of the sampled token alone.

    Args:
        engine: the backend.
        count: how many of the likeliest tokens of each step count.
    """
    generate, asked = engine.generate, engine.logprobs
    entropies: list[list[float]] = []

    def with_top(*args: Any, **kwargs: Any) -> tuple:
        prompts, completions, logps, tokens = generate(*args, **kwargs)
        if tokens is None:
            raise RuntimeError("The vLLM server returns no token ids with its log-probabilities: update it.")
        entropies.extend([top_entropy(step, count) for step in row] for row in logps)
        sampled = [
            [[step[known.index(token)]] for token, step, known in zip(*row, strict=True)]
            for row in zip(completions, logps, tokens, strict=True)
        ]
        return prompts, completions, sampled, tokens

    engine.generate, engine.logprobs = with_top, count
    try:
        yield entropies
    finally:
        engine.generate, engine.logprobs = generate, asked
