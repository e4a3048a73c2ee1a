# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""W&B without network and trackio, for real, through `report_to`: what they have written is read back."""

import json
import struct
import time

import pytest
from support.tiny import build_trainer

from trl_entropy import EntropyGRPOConfig, EntropyGRPOTrainer
from trl_entropy.diagnosis import callback
from trl_entropy.diagnosis.rules import Finding


wandb = pytest.importorskip("wandb")
trackio = pytest.importorskip("trackio")

COLUMNS = ["step", "prompt", "completion", "count_reward", "token_entropy_max", "token_entropy_mean", "advantage"]
FINDINGS = [
    Finding("method inert", 1, {}, "Seen.", "Meant.", turn, severe) for turn, severe in (("A.", False), ("B.", True))
]
METHOD_KEYS = {
    *(f"train/clip_cov/{name}" for name in ("kept_fraction", "eligible_fraction", "covariance_mean")),
    *(f"train/kl_cov/{name}" for name in ("selected_fraction", "covariance_mean", "penalty_mean")),
    *(f"train/entropy/quantile_{share}" for share in (10, 50, 90)),
    "train/entropy/positive_advantage_mean",
    "train/entropy/negative_advantage_mean",
}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A finished run of two steps: its trainer and the folder of W&B."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("WANDB_SILENT", "true")
        patch.setattr(callback, "diagnose", lambda history: FINDINGS)  # a run of two steps deserves none
        trainer = build_trainer(
            EntropyGRPOTrainer,
            EntropyGRPOConfig,
            folder / "out",
            methods=["kl_cov", "clip_cov"],
            steps_per_generation=2,
            log_completions=True,
            report_to=["wandb", "trackio"],
            project="trackers",
            run_name="both",
        )
        trainer.train()
        trainer.create_model_card()
        trainer.accelerator.end_training()  # as `Trainer.end` of newer transformers
        wandb.finish()
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 120
    while not any(record.HasField("exit") for record in records(path)):  # W&B's own process may still be writing
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return trainer, folder


def records(path):
    """The records of a `.wandb` file: a leveldb log of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, record = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:  # the rest of a block is padding
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        if offset + 7 + length > len(data):  # not written to its end yet
            return
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # the whole, or its last part
            yield Record.FromString(record)
            record = b""


def read_wandb(path):
    """The history of a `.wandb` file, one dict per line."""
    items = [record.history.item for record in records(path)]
    lines = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in line} for line in items]
    return [line for line in lines if line]


def groups(keys):
    return {key.split("/")[1] for key in keys if key.startswith("train/") and key.count("/") > 1}


def check_metrics(lines, trainer):
    """Each log of the trainer has arrived, and each method has a group of its own."""
    logged = [line for line in trainer.state.log_history if "loss" in line]
    found = [line for line in lines if "train/loss" in line]
    assert len(found) == len(logged) == 2
    for line, log in zip(found, logged, strict=True):
        assert METHOD_KEYS <= set(line)
        for key in METHOD_KEYS:
            assert line[key] == pytest.approx(log[key.removeprefix("train/")])
    assert groups(found[0]) == {"clip_cov", "clip_ratio", "completions", "entropy", "kl_cov", "rewards"}


def test_wandb_has_the_metrics(tracked):
    trainer, folder = tracked
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    check_metrics(read_wandb(path), trainer)


def test_wandb_has_the_completions_with_their_entropies(tracked):
    trainer, folder = tracked
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    tables = [line for line in read_wandb(path) if "completions" in line or "completions/path" in line]
    assert len(tables) == 3  # two steps, and the summary at the end
    paths = list(folder.glob("wandb/offline-run-*/files/media/table/completions_*.table.json"))
    table = json.loads(paths[0].read_text())
    assert table["columns"] == COLUMNS and len(table["data"]) == 8
    means, peaks = ([row[table["columns"].index(name)] for row in table["data"]] for name in COLUMNS[5:3:-1])
    assert all(0 < mean <= peak < 4 for mean, peak in zip(means, peaks, strict=True))


def test_trackio_has_the_metrics_and_the_completions(tracked):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("trackers")  # in the folder that conftest names
    lines = SQLiteStorage.get_logs("trackers", run.name, run_id=run.id)
    check_metrics(lines, tracked[0])
    tables = [line["completions"] for line in lines if "completions" in line]
    assert len(tables) == 3
    assert [len(table["_value"]) for table in tables] == [8, 8, 8]
    assert list(tables[0]["_value"][0]) == COLUMNS


def test_card_names_no_tracker_that_others_cannot_see(tracked):
    text = (tracked[1] / "out" / "README.md").read_text()
    assert "wandb.ai" not in text and "[Weights & Biases]" not in text and "[Trackio]" not in text


ALERTS = [("Diagnosis: method inert", f"Step 1: Seen. Meant. {turn}") for turn in ("A.", "B.")]


def test_wandb_has_the_findings_as_alerts(tracked):
    (path,) = tracked[1].glob("wandb/offline-run-*/*.wandb")
    alerts = [record.alert for record in records(path) if record.HasField("alert")]
    assert [(alert.title, alert.text) for alert in alerts] == ALERTS
    assert [(alert.level, alert.wait_duration) for alert in alerts] == [("WARN", 1), ("ERROR", 1)]


def test_trackio_has_the_findings_as_alerts(tracked):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("trackers")
    alerts = SQLiteStorage.get_alerts("trackers", run.name, run_id=run.id)
    assert sorted((alert["title"], alert["text"], alert["level"]) for alert in alerts) == [
        (*ALERTS[0], "warn"),
        (*ALERTS[1], "error"),
    ]
