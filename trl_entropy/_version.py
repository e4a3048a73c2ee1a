# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The version, in a module that imports nothing."""

__version__ = "0.1.0"
