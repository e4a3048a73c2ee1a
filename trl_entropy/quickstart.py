# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_entropy.quickstart`."""

from .countdown.grpo import main


if __name__ == "__main__":
    main()
