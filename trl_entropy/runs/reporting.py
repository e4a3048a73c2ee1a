# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The order of callbacks: those that add to a log line come before those that report it."""

from transformers.trainer_callback import CallbackHandler


def report_last(handler: CallbackHandler) -> None:
    """Puts what adds to a log line before what reports it; among themselves both keep their order."""
    handler.callbacks.sort(key=lambda callback: not getattr(callback, "adds_to_logs", False))


class ReportsLast:
    """The part of a trainer that keeps its callbacks in that order. Mixed in before TRL's trainer."""

    def add_callback(self, callback):
        super().add_callback(callback)
        report_last(self.callback_handler)
