# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Countdown, the toy task, and the quickstarts on it."""

from .task import countdown_reward as countdown_reward
