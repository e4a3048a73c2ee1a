# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainers and their configs. Besides this folder, only `head` and `runs` know TRL's trainers."""
