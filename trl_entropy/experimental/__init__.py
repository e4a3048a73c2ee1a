# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Experimental: what papers propose and nobody has shown to help after pre-training. Nothing else here uses it."""
