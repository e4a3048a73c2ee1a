# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The texts of single tokens, which join to the text of all of them."""

from collections.abc import Callable


PART = "\ufffd"  # what part of a character decodes to
GAP = "\0"  # stands for a token that is not of the policy, so that no text is found across it


class Pieces:
    """Token ids -> what each adds to the text, so that all pieces together are `decode(ids)`.

    Decoded alone, a token may lose the space before it, or be part of a character. So each is decoded behind another one,
    once per vocabulary entry; a character made of several tokens belongs to the last of them.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._behind: dict[int, str] = {}
        self._first: dict[int, str] = {}
        self._anchor: int | None = None

    def __call__(self, ids: list[int], kept: list[bool] | None = None) -> list[str]:
        """`kept` marks the tokens that the policy wrote; the piece of any other is `GAP`."""
        pieces = [self._piece(token, first=index == 0) for index, token in enumerate(ids)]
        at = 0
        while at < len(ids):
            end = at
            while end < len(ids) and PART in pieces[end]:
                end += 1
            if end > at:
                pieces[at:end] = self._characters(ids[max(at - 1, 0) : at], ids[at:end])
            at = end + 1
        return pieces if kept is None else [piece if keep else GAP for piece, keep in zip(pieces, kept, strict=True)]

    def _piece(self, token: int, first: bool) -> str:
        if token not in self._first:
            self._first[token] = self._decode([token])
        if first:
            return self._first[token]
        if self._anchor is None:
            self._anchor = next((seen for seen, text in self._first.items() if text and PART not in text), None)
        if self._anchor is None:
            return PART
        if token not in self._behind:
            before = self._decode([self._anchor])
            self._behind[token] = self._decode([self._anchor, token])[len(before) :]
        return self._behind[token]

    def _characters(self, before: list[int], ids: list[int]) -> list[str]:
        """The pieces of tokens some of which are parts of characters, behind a whole one."""
        done, pieces = self._decode(before) if before else "", []
        for count in range(1, len(ids) + 1):
            text = self._decode([*before, *ids[:count]])
            whole = count == len(ids) or not text.endswith(PART)
            pieces.append(text[len(done) :] if whole else "")
            done = text if whole else done
        return pieces
