# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command `trl-entropy`; the commands are in `trl_entropy.commands`.

`trl-entropy grpo --config recipe.yaml` starts the training processes, as `trl grpo` does. Under
`accelerate launch -m trl_entropy.cli grpo --config recipe.yaml` they already run, and each trains.
"""

import sys

from .commands.main import COMMANDS as COMMANDS
from .commands.main import main as main


if __name__ == "__main__":
    sys.exit(main(launch=False))
