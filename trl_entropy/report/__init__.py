# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`trl-entropy report`: compares runs by what they left in their folders, in one picture and one page of HTML."""
