# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Colors of runs, on a light and on a dark page."""

import colorsys


# Distinguishable for color-blind readers (after Okabe and Ito), with a contrast of at least 3 to 1 to the page.
LIGHT = ("#0072b2", "#d55e00", "#00855f", "#b5468a", "#a17100", "#2b8fd0", "#6b6b6b", "#7d7a00", "#5e3c99", "#8c2d19")
DARK = ("#56b4e9", "#ff8b3d", "#2fc79a", "#e59ac6", "#f0b93a", "#9ecbff", "#b5b5b5", "#d6cf4a", "#b39ddb", "#ff9e8a")
GOLDEN = 0.618034  # step on the circle of hues: each color is far from the ones before it


def color_of(run: int, dark: bool = False) -> str:
    """The color of a run. Runs beyond the palette get further colors, each a different one."""
    palette = DARK if dark else LIGHT
    beyond = run - len(palette)
    if beyond < 0:
        return palette[run]
    saturation, value = (0.5, (1.0, 0.85)[beyond % 2]) if dark else (0.85, (0.52, 0.4)[beyond % 2])
    rgb = colorsys.hsv_to_rgb(beyond * GOLDEN % 1, saturation, value)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
