# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What our trainers add to TRL's around a run, as one class to derive from."""

from .card_hooks import CardHooks
from .reporting import ReportsLast
from .resuming import ResumesWhole
from .states import SavesStates


class RunMixin(CardHooks, ResumesWhole, SavesStates, ReportsLast):
    """Model cards, states beside checkpoints, resuming from the last whole one, and logs that are complete when they
    are reported. Stands before TRL's trainer."""
