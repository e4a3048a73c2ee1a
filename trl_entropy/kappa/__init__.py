# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""KappaTune: rank the weights of a model by condition number, and train those with spare capacity.

The condition number κ(W) = σ_max / σ_min of a weight is computed once, before training. A weight with a low condition
number uses all its directions about equally, which is said to leave spare capacity. A high condition number marks a
specialized weight, which stays as it is. [KappaTune](https://huggingface.co/papers/2506.16289).

Departs from the paper's code: matrices without full rank are never selected, embeddings and the output head are
candidates only on request, fused experts rank by the median of their experts, and ties are broken by name.

`layers`, `selection`, `config`, `fingerprint`, `cache` and `report` must not import torch. Importing it takes seconds,
and the command would no longer show a cached table at once.
"""
