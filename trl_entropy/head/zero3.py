# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What DeepSpeed's ZeRO-3 remembers of a plain forward, and a fused head does not do.

ZeRO-3 records the order in which modules run, and gathers weights ahead in that order. A plain forward ends in the
module of the LM head, so its weight is gathered ahead in the next forward, too. A fused head gathers the weight itself
and frees it again, and the backward then fails: "The size of tensor a (0) must match the size of tensor b". TRL has
the order forgotten after generation, but only where it has gathered all weights for it.
"""

from torch import nn
from trl.models.utils import add_hooks, remove_hooks


def forget_order(model: nn.Module) -> None:
    """After plain forwards, before one with a fused head: has ZeRO-3 record its order again.

    Args:
        model: as it is wrapped for several processes. Without ZeRO-3 nothing is done.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        remove_hooks(model)
        add_hooks(model)
