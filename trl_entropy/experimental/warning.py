# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The warning that a part of this package gives when it is first used."""

import warnings


class ExperimentalWarning(UserWarning):
    """What is used may change or go in any version, and no run has shown that it helps in post-training."""


_warned: set[str] = set()


def warn_once(name: str) -> None:
    """Warns that `name` is experimental, once in a process."""
    if name not in _warned:
        _warned.add(name)
        warnings.warn(
            f"`{name}` is experimental: no run here shows that it helps in post-training, and it may change or go in "
            "any version. docs/experimental.md says what was checked.",
            ExperimentalWarning,
            stacklevel=3,
        )
