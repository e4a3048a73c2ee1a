# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Settings that libraries read from the environment when they are imported: import this before them."""

import atexit
import os
import shutil
import tempfile


os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",  # workers of pytest share the cores
    TOKENIZERS_PARALLELISM="false",
    TRACKIO_DIR=tempfile.mkdtemp(prefix="trackio-"),  # read when TRL is imported
    WANDB_MODE="offline",
)
atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)
