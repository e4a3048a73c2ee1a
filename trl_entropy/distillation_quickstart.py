# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_entropy.distillation_quickstart`: the same as `trl-entropy quickstart-distillation`."""

import sys

from .commands.quickstart_distillation import main


if __name__ == "__main__":
    sys.exit(main())
