# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The setting `diagnosis` of our trainers."""

from dataclasses import dataclass, field
from typing import Any

from ..settings import checked


CHOICES = ("true", "false", "stop")


@dataclass
class DiagnosisConfig:
    diagnosis: str = field(
        default="true",
        metadata={
            "help": "Check the log for what goes wrong and warn once of each finding. `true`, `false`, or `stop`: "
            "also stop the run on collapse or explosion of entropy and on divergence. A method that does nothing is "
            "reported after the first three generation batches and five log lines."
        },
    )


def check_diagnosis(config: Any) -> None:
    """Reads the field, which YAML gives as a boolean. Raises `ValueError` for any other value."""
    if isinstance(config.diagnosis, bool):
        config.diagnosis = str(config.diagnosis).lower()
    checked(config, "diagnosis", lambda value: isinstance(value, str) and value in CHOICES, "true, false or 'stop'")
