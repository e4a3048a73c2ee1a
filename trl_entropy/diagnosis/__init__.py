# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Says what is wrong with a run, from its log: rules with evidence, and which field to change.

Only `callback` and `config` import more than NumPy, so that `trl-entropy diagnose` answers at once.
"""
