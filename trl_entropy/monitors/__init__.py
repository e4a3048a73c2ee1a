# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Monitors: measurements of the model while it trains, which change nothing. One paper a module."""
