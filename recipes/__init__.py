# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Recipes, one YAML file per method, and accelerate configs. Installed as `trl_entropy.recipes`."""
