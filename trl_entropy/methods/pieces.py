# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The texts of single tokens, which join to the text of the whole."""

from collections.abc import Callable


PART = "\ufffd"  # decoded from an incomplete character
LONGEST_CHARACTER = 8  # tokens: a longer run of bytes is not text
GAP = "\0"  # replaces a token that the policy did not write, so that no match spans it


def token_texts(ids: list[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text that each token adds. If several tokens make up a character, the last one gets it."""
    texts, start, read = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, now = decode(ids[start:read]), decode(ids[start:end])
        complete = not now.endswith(PART) or end - read >= LONGEST_CHARACTER or end == len(ids)
        texts.append(now[len(before) :] if complete else "")
        if complete:
            start, read = read, end
    return texts


class Pieces:
    """Token ids -> the text that each adds, so that the pieces join to `decode(ids)`.

    Decoded alone, a token may lose its leading space or be part of a character. So each is decoded after another
    token, once per vocabulary entry. A character of several tokens belongs to the last of them.
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
                start = max(at - 1, 0)  # decode after a complete token
                pieces[at:end] = token_texts(ids[start:end], self._decode)[at - start :]
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
