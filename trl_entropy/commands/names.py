# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names of methods as users write them."""


def method_name(text: str) -> str:
    """The name of a method, which may be given in capitals and with hyphens: `Clip-Cov` is `clip_cov`."""
    return text.lower().replace("-", "_")
