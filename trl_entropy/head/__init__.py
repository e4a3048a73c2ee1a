# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The fused LM head: extra statistics of the next-token distribution, and a backward on live rows only."""

from .agreement import check_head
from .patch import EXTRA_OUTPUTS, EntropyCausalLMOutput, EntropyHead, add_entropy_head


__all__ = ["EXTRA_OUTPUTS", "EntropyCausalLMOutput", "EntropyHead", "add_entropy_head", "check_head"]
