# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the log of a run tells: laws, code length, and schedules of the learning rate."""
