# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: model card, states, settings, token logs; and how it is resumed."""
