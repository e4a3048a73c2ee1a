# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
r"""LDR-KL: a loss for classification that is robust to wrong labels.

[Label Distributionally Robust Losses for Multi-class Classification](https://huggingface.co/papers/2112.14869). For
logits z, label y and margins c_y = 0, c_k = c for the K - 1 other classes:

    loss = λ ln( 1/K Σ_k exp((c_k + z_k - z_y) / λ) )

With c = 0 it is λ times the cross-entropy of z / λ, minus λ ln K. The paper's adaptive loss (ALDR), which keeps
a λ for each example, is not here.
"""

import math

import torch
from torch import Tensor

from ..paper import Paper
from .warning import warn_once


PAPER = Paper(
    arxiv="2112.14869",
    title="Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and "
    "Adaptivity",
    bibtex="""@inproceedings{zhu2023label,
    title     = {Label Distributionally Robust Losses for Multi-class Classification: Consistency, Robustness and
                 Adaptivity},
    author    = {Dixian Zhu and Yiming Ying and Tianbao Yang},
    booktitle = {International Conference on Machine Learning},
    year      = {2023},
    note      = {arXiv:2112.14869}
}""",
)


def ldr_kl_loss(
    logits: Tensor, labels: Tensor, lam: float = 1.0, margin: float = 0.0, ignore_index: int = -100
) -> Tensor:
    """Mean LDR-KL loss, which has a gradient.

    Args:
        logits: (..., K).
        labels: (...) classes. Those equal to `ignore_index` do not count.
        lam: λ, above 0. Towards 0 it is the largest margin violation, towards infinity their mean.
        margin: c of the classes other than the label.
        ignore_index: label that does not count.

    Returns:
        A scalar, in float32 or in float64 for such logits. 0 if no label counts.

    Raises:
        `ValueError`: `lam` or `margin` is out of range, or the shapes do not match.
    """
    warn_once("ldr_kl_loss")
    if not 0 < lam < math.inf:
        raise ValueError(f"`lam` must be a finite number above 0, got {lam!r}.")
    if not 0 <= margin < math.inf:
        raise ValueError(f"`margin` must be a finite number >= 0, got {margin!r}.")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"`labels` must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}.")
    counts = labels != ignore_index
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))[counts]
    if not len(z):
        return z.sum()
    y = labels[counts].unsqueeze(-1)
    c = torch.full_like(z, margin).scatter(-1, y, 0.0)
    losses = lam * (((c + z - z.gather(-1, y)) / lam).logsumexp(-1) - math.log(z.size(-1)))
    return losses.mean()
