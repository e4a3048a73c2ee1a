# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_entropy`: the same as the command `trl-entropy`."""

import sys

from .commands.main import main


if __name__ == "__main__":
    sys.exit(main())
