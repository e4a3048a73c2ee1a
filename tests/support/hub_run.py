# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""Started by `test_hub.py` in a process of its own, as the Hub's client reads its settings when it is imported.

`python hub_run.py REPOSITORY REPORT ARGUMENT...` runs `trl-entropy ARGUMENT...`, loads what it has pushed to
REPOSITORY, and writes what it found to the file REPORT. A connection to anything but loopback is refused and noted.
"""

import json
import runpy
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import datasets
from huggingface_hub import HfApi


LOOPBACK = ("127.0.0.1", "localhost", "::1")
refused: list[str] = []


def stay_inside(event: str, arguments: tuple) -> None:
    """Audit hook: refuses to look up or to connect to other machines."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host is not None and host not in LOOPBACK:
        refused.append(host)
        raise OSError(f"{host} is not this machine")


def at_once(api: HfApi, function: Callable, *args, **kwargs) -> Future:
    """Replaces `HfApi.run_as_future`, as the trainer pushes nothing while an earlier push is not done."""
    done: Future = Future()
    done.set_result(function(*args, **kwargs))
    return done


def load(repository: str) -> dict:
    """Loads the model as other users of the Hub would."""
    from huggingface_hub import ModelCard, hf_hub_download
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_entropy.runs.states import STATE_FILE

    model = AutoModelForCausalLM.from_pretrained(repository)
    own = AutoModelForCausalLM.from_pretrained("out").state_dict()
    return {
        "same_weights": all(bool((value == own[name]).all()) for name, value in model.state_dict().items()),
        "moved": bool(
            (own["lm_head.weight"] != AutoModelForCausalLM.from_pretrained("user/base").lm_head.weight).any()
        ),
        "tokens": AutoTokenizer.from_pretrained(repository)("w3 w4")["input_ids"],
        "state": json.loads(Path(hf_hub_download(repository, STATE_FILE)).read_text())["parts"],
        "card": ModelCard.load(repository).data.to_dict(),
    }


def main(repository: str, report: str, *arguments: str) -> None:
    sys.addaudithook(stay_inside)
    datasets.config.USE_PARQUET_EXPORT = False  # else it asks another server for its conversion of the dataset
    HfApi.run_as_future = at_once
    sys.argv = ["trl-entropy", *arguments]
    try:
        runpy.run_module("trl_entropy.cli", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise
    Path(report).write_text(json.dumps(load(repository) | {"refused": refused}))


if __name__ == "__main__":
    main(*sys.argv[1:])
