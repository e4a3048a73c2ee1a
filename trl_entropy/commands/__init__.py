# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line: one module per command, which `main` imports when the command is given."""
