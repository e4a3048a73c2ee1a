# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Countdown, the toy task of the quickstarts: task, tiny model, training, evaluation, tables and plots."""

from .chat import calculator as calculator
from .task import countdown_reward as countdown_reward
