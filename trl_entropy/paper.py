# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""A paper to cite."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A published method: arXiv identifier, title, BibTeX entry."""

    arxiv: str
    title: str
    bibtex: str

    @property
    def url(self) -> str:
        return f"https://huggingface.co/papers/{self.arxiv}"
