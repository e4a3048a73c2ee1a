# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_entropy.quickstart`: the same as `trl-entropy quickstart`."""

import sys

from .commands.quickstart import main


if __name__ == "__main__":
    sys.exit(main())
