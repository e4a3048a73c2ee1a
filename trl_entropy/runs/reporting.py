# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The order of callbacks: those that add to the logs run before those that report them."""

from transformers.trainer_callback import CallbackHandler


def report_last(handler: CallbackHandler) -> None:
    """Runs callbacks that add to the logs before those that report them; otherwise keeps the order."""
    handler.callbacks.sort(key=lambda callback: not getattr(callback, "adds_to_logs", False))


class ReportsLast:
    """The part of a trainer that keeps its callbacks in that order. A mixin: it comes before TRL's trainer."""

    def add_callback(self, callback):
        super().add_callback(callback)
        report_last(self.callback_handler)
