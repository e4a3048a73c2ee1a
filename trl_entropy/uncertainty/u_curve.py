# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy and length of answers over the difficulty of questions: the U-curve of DiffAdapt."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean


BINS = 10


@dataclass(frozen=True)
class Question:
    """A question with its answers.

    Attributes:
        place: of its first answer.
        samples: number of answers.
        accuracy: share of right answers.
        entropy: mean over answers of their mean token entropy, in nats.
        tokens: mean number of tokens; `None` if not known.
    """

    place: int
    samples: int
    accuracy: float
    entropy: float
    tokens: float | None


def questions_of(
    keys: Sequence[Hashable],
    right: Sequence[float],
    entropy: Sequence[float],
    tokens: Sequence[float | None] | None = None,
) -> list[Question]:
    """The questions of N answers, in the order of their first answers.

    Args:
        keys: (N,) what the answers to one question share.
        right: (N,) 1 for a right answer, 0 for a wrong one.
        entropy: (N,) mean token entropies in nats.
        tokens: (N,) numbers of tokens.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    found = []
    for places in groups.values():
        lengths = [tokens[n] for n in places] if tokens is not None else [None]
        known = [length for length in lengths if length is not None]
        mean = fmean(known) if len(known) == len(lengths) else None
        accuracy, h = (fmean(values[n] for n in places) for values in (right, entropy))
        found.append(Question(places[0], len(places), accuracy, h, mean))
    return found


@dataclass(frozen=True)
class Bin:
    """Questions of similar accuracy.

    Attributes:
        low, high: ends of the bin. It is closed on the left; the last one on both sides.
        count: number of questions.
        accuracy: their mean accuracy.
        entropy: mean over them, in nats.
        tokens: mean over them; `None` if not known.
    """

    low: float
    high: float
    count: int
    accuracy: float
    entropy: float
    tokens: float | None


def u_curve(questions: Sequence[Question], bins: int = BINS) -> list[Bin]:
    """The bins of equal width in accuracy that have questions, the hardest first. Each question is in one bin."""
    groups: dict[int, list[Question]] = {}
    for question in questions:
        place = int(round(question.accuracy * bins, 9))  # 0.58 * 100 is just below 58
        groups.setdefault(min(place, bins - 1), []).append(question)
    found = []
    for place, members in sorted(groups.items()):
        lengths = [question.tokens for question in members if question.tokens is not None]
        found.append(
            Bin(
                place / bins,
                (place + 1) / bins,
                len(members),
                fmean(question.accuracy for question in members),
                fmean(question.entropy for question in members),
                fmean(lengths) if len(lengths) == len(members) else None,
            )
        )
    return found


def overthinking(curve: Sequence[Bin]) -> float | None:
    """The share by which entropy falls from the easiest bin to the lowest one; `None` if that is not defined.

    The paper reports 0.22 to 0.25. 0 means that the easiest questions have the lowest entropy.
    """
    if len(curve) < 2 or curve[-1].entropy <= 0:
        return None
    return 1 - min(part.entropy for part in curve) / curve[-1].entropy
