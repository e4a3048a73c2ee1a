# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_entropy.distillation_quickstart`."""

from .countdown.distillation import main


if __name__ == "__main__":
    main()
