# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A paper to cite."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """The paper of a published method.

    Attributes:
        arxiv: arXiv identifier, as in `url`.
        title: title.
        bibtex: BibTeX entry, for model cards.
    """

    arxiv: str
    title: str
    bibtex: str

    @property
    def url(self) -> str:
        return f"https://huggingface.co/papers/{self.arxiv}"
