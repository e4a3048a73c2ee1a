# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Uncertainty: scores of answers by their token distributions, and how well they tell right from wrong."""
