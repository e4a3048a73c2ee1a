# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""DiffAdapt: how hard a question is for a model, and how to answer it then.

[DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference](https://huggingface.co/papers/2510.19669).
A question is answered several times. With acc the share of right answers and H their mean token entropy in nats:

1. it is `normal` if acc >= α and H <= β;
2. else `hard` if acc < γ;
3. else `easy`.

A probe learns to tell the label from the model's hidden state at the end of the prompt. Each label has a strategy: a
prompt, a temperature and a token limit.

No code of the authors is public. The abstract was read; the rule, temperatures and limits are from notes of another
reader. α, β, γ, the prompts and all else are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median

from ..paper import Paper


PAPER = Paper(
    arxiv="2510.19669",
    title="DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference",
    bibtex="""@inproceedings{liu2026diffadapt,
    title     = {{DiffAdapt}: Difficulty-Adaptive Reasoning for Token-Efficient {LLM} Inference},
    author    = {Xiang Liu and Xuming Hu and Xiaowen Chu and Eunsol Choi},
    booktitle = {International Conference on Learning Representations},
    year      = {2026}
}""",
)
EASY, NORMAL, HARD = "easy", "normal", "hard"
LABELS = (EASY, NORMAL, HARD)
ALPHA, GAMMA = 0.7, 0.3


@dataclass(frozen=True)
class Strategy:
    """How to answer a question.

    Attributes:
        name: the label whose strategy it is.
        temperature: of sampling; 0 takes the likeliest token.
        share: of the token limit, in (0, 1].
        prompt: an instruction that is added to the question.

    Raises:
        `ValueError`: the temperature or the share is out of range.
    """

    name: str
    temperature: float
    share: float
    prompt: str

    def __post_init__(self):
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"`temperature` of {self.name!r} must be a finite number >= 0, got {self.temperature!r}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` of {self.name!r} must be a ratio in (0, 1], got {self.share!r}.")

    def tokens(self, limit: int) -> int:
        """Its limit of tokens, at least 1."""
        return max(1, round(self.share * limit))


STRATEGIES = {
    EASY: Strategy(EASY, 0.5, 0.4, "Answer directly and check the answer once."),
    NORMAL: Strategy(NORMAL, 0.8, 1.0, "Think step by step, then give the answer."),
    HARD: Strategy(
        HARD,
        0.4,
        0.5,
        "First state what is known. If you get stuck, stop early and give your best answer.",
    ),
}


def difficulty_labels(
    accuracy: Sequence[float],
    entropy: Sequence[float],
    alpha: float = ALPHA,
    beta: float | None = None,
    gamma: float = GAMMA,
) -> list[str]:
    """The labels of N questions.

    Args:
        accuracy: (N,) shares of right answers, in [0, 1].
        entropy: (N,) mean token entropies in nats.
        alpha: accuracy from which a question can be `normal`.
        beta: entropy up to which it then is; the median of `entropy` by default.
        gamma: accuracy below which a question is `hard`.

    Returns:
        `easy`, `normal` or `hard` for each.

    Raises:
        `ValueError`: a threshold is out of range, or a value is not finite.
    """
    if not 0 <= gamma <= alpha <= 1:
        raise ValueError(f"`gamma` and `alpha` must be 0 <= gamma <= alpha <= 1, got {gamma!r} and {alpha!r}.")
    if beta is not None and not isfinite(beta):
        raise ValueError(f"`beta` must be a finite number, got {beta!r}.")
    if len(accuracy) != len(entropy) or not all(map(isfinite, (*accuracy, *entropy))):
        raise ValueError("`accuracy` and `entropy` must be finite, and as many.")
    limit = beta if beta is not None else median(entropy) if entropy else 0.0

    def label(acc: float, h: float) -> str:
        if acc >= alpha and h <= limit:
            return NORMAL
        return HARD if acc < gamma else EASY

    return [label(acc, h) for acc, h in zip(accuracy, entropy, strict=True)]
