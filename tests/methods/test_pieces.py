# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Texts are found in completions of any tokenizer, at the tokens that write them."""

import pytest
import torch
from support import cases
from support.tensors import make_rollouts
from support.tiny import build_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from trl_entropy.methods.pear import tag_span
from trl_entropy.methods.pieces import GAP, Pieces, token_texts


TEXTS = ["the sum is 4", "Final Answer: 3", "a </think> b", "x\n\ny"]
SPECIAL = ["<unk>", "<pad>", "<eos>"]


def trained(space, decoder, **options):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = space, decoder
    backend.train_from_iterator(TEXTS * 5, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, **options))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def build(kind):
    """Byte-level as GPT and Qwen have it; with a mark for spaces, dropped in front, as Llama 2 and Mistral have it."""
    if kind == "bytes":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        space = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return trained(space, decoders.ByteLevel(), initial_alphabet=alphabet)
    return trained(pre_tokenizers.Metaspace(), decoders.Metaspace())


@pytest.mark.parametrize(
    "kind, text, tag",
    [
        ("bytes", "the sum◁/think▷4", "◁/think▷"),
        ("bytes", "≤é◁/think▷日本 4", "◁/think▷"),
        ("bytes", "the sum</think>4", "</think>"),
        ("bytes", "◁/think▷", "◁/think▷"),
        ("spaces", "the sum is 4 Final Answer: 3", "Final Answer:"),
        ("spaces", "a </think> b", "</think>"),
        ("spaces", "a </think> b", " b"),
    ],
)
def test_pieces_join_to_the_text(kind, text, tag):
    tokenizer = build(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    for decoder in (Pieces(tokenizer.decode), shared := Pieces(tokenizer.decode)):
        assert "".join(decoder(ids)) == tokenizer.decode(ids)
    assert "".join(shared(ids[::-1])) == tokenizer.decode(ids[::-1]) or kind == "bytes"
    first, stop = tag_span(shared(ids), tag)
    inside = tokenizer.decode(ids[:stop]).removeprefix(tokenizer.decode(ids[:first]))
    assert tag.strip() in inside and tag not in tokenizer.decode(ids[: stop - 1])

    method = cases.build("empg", empg_splitter=tag)
    method.setup(tokenizer.decode)
    breaks = method._breaks(make_rollouts([[1.0] * len(ids)], [1.0], completion_ids=torch.tensor([ids])))
    assert breaks.nonzero().tolist() == [[0, stop - 1]]


def test_characters_of_many_tokens_belong_to_the_last():
    tokenizer = build("bytes")
    ids = tokenizer.encode("é≤", add_special_tokens=False)
    assert Pieces(tokenizer.decode)(ids) == ["", "é", "", "", "≤"]
    assert Pieces(tokenizer.decode)(ids[:-1])[:3] == ["", "é", ""]  # the last one is cut


def test_gaps_and_no_tokens():
    pieces = Pieces(build_tokenizer().decode)
    assert pieces([]) == [] and pieces([4, 5], [True, False])[1] == GAP


def test_characters_of_several_tokens_stand_at_the_last():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    text = "a \U0001f600é\n"
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(ids, tokenizer.decode)
    assert texts == ["a", " ", "", "", "", "\U0001f600", "", "é", "\n"]
    # Tokens that end within a character or are not valid text are not lost.
    assert "".join(token_texts(ids[:4], tokenizer.decode)) == "a \ufffd"
    broken = tokenizer("é")["input_ids"][:1] * 20
    assert len(token_texts(broken, tokenizer.decode)) == 20 and token_texts(broken, tokenizer.decode)[7]
