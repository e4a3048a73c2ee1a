# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a mixin of our trainers may count on, for type checkers."""

from typing import TYPE_CHECKING, Any

from transformers import Trainer


MixinBase: Any = Trainer if TYPE_CHECKING else object
