# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which method first: advice as data, and the lines of YAML that it means for a recipe.

`trl-entropy recommend` prints it, and `docs/which_method.md` has the same as a table. Imports nothing slow.
"""
