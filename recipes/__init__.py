# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Recipes, installed as `trl_entropy.recipes`: one YAML file per method, and accelerate configs."""
