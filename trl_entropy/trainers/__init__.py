# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The trainers and their configs. Nothing outside this folder but `head` and `runs` knows TRL's trainers."""
