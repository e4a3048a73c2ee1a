# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy report`: compares runs from the files in their folders, in an interactive HTML page."""
