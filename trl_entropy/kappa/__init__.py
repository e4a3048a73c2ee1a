# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""KappaTune: rank the weights of a model by condition number, and train those that have room.

The condition number κ(W) = σ_max / σ_min of a weight is computed once, before training. Weights with a low one use their
directions evenly; those with a high one are said to be specialised, and are left as they are.
[KappaTune](https://huggingface.co/papers/2506.16289).

Departs from the paper's code: matrices without full rank are never chosen, embeddings and the output head are no candidates
unless asked for, fused experts count by the median of their experts, and ties are broken by name.

`layers`, `selection`, `fingerprint`, `cache` and `report` import no torch, so that a cached table costs no time.
"""
