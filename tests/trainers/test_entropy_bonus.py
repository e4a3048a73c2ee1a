# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
from support.reference import dense_logps_and_entropy
from support.tensors import make_loss_batch
from support.tiny import build_model, loss_and_gradients

from trl_entropy.trainers.entropy_bonus import BandController, PIController, scheduled_coef


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.4] * 5),
        ("linear", [0.4, 0.3, 0.2, 0.1, 0.0]),
        ("cosine", [0.4, 0.3414213562, 0.2, 0.0585786438, 0.0]),
    ],
)
def test_scheduled_coef(schedule, expected):
    assert [scheduled_coef(0.4, schedule, step, 8) for step in (0, 2, 4, 6, 8)] == pytest.approx(expected)
    assert scheduled_coef(0.4, schedule, 99, 8) == pytest.approx(expected[-1])


def test_schedule_moves_the_bonus_of_the_loss(make_trainer):
    trainer = make_trainer(entropy_coef=0.4, entropy_coef_schedule="linear", model=build_model())
    plain = make_trainer(entropy_coef=0.0, model=build_model())
    batch = make_loss_batch()
    trainer.state.max_steps, trainer.state.global_step = 8, 6
    _, entropy = dense_logps_and_entropy(build_model(), batch)
    bonus = 0.1 * entropy.sum() / batch["completion_mask"].sum()
    difference = loss_and_gradients(plain, batch)[0] - loss_and_gradients(trainer, batch)[0]
    assert difference.item() == pytest.approx(bonus.item(), rel=1e-4)


def test_schedule_is_logged(make_trainer):
    trainer = make_trainer(max_steps=4, entropy_coef=0.4, entropy_coef_schedule="linear")
    trainer.train()
    rows = [row["entropy_coef"] for row in trainer.state.log_history if "loss" in row]
    assert rows == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_controller_by_hand():
    controller = PIController(target=1.0, kp=0.5, ki=0.1, start=0.02, low=0.0, high=0.3)
    assert controller.update(0.8) == pytest.approx(0.5 * 0.2 + 0.02 + 0.1 * 0.2)
    assert controller.update(1.3) == 0  # 0.5 * -0.3 + 0.04 - 0.03 lies below the bound
    assert controller.integral == pytest.approx(0.01)
    assert controller.update(-9.0) == 0.3 and controller.integral == 0.3


def test_controller_settles_where_the_plant_meets_the_target():
    """A plant whose entropy follows the coefficient with a lag: 0.5 nats without bonus, plus 4 nats per unit."""
    controller, entropy = PIController(1.0, kp=0.05, ki=0.02, start=0.0, low=0.0, high=1.0), 0.5
    for _ in range(400):
        entropy += 0.2 * (0.5 + 4 * controller.update(entropy) - entropy)
    assert entropy == pytest.approx(1.0, abs=1e-3)
    assert controller.update(entropy) == pytest.approx(0.125, abs=1e-3)


def test_controller_in_training_and_across_a_checkpoint(make_trainer, tmp_path):
    settings = dict(
        use_adaptive_entropy=True,
        entropy_controller="pi",
        entropy_target=3.0,
        max_steps=6,
        save_strategy="steps",
        save_steps=3,
        gradient_accumulation_steps=2,
    )
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    rows = [row for row in whole.state.log_history if "loss" in row]
    controller = PIController(3.0, 0.1, 0.01, whole.args.entropy_coef, 0.0, 1.0)
    expected = [controller.update(row["entropy"]) for row in rows]
    # The logged entropy averages over micro-batches, TRL's measurement over their tokens.
    assert [row["entropy_coef"] for row in rows] == pytest.approx(expected, rel=0.1)
    assert rows[0]["entropy_coef"] > 0.05
    settings["save_strategy"] = "no"
    resumed = make_trainer(output_dir=tmp_path / "resumed", model=build_model(seed=1), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    again = [row for row in resumed.state.log_history if "loss" in row]
    assert [row["entropy_coef"] for row in again] == [row["entropy_coef"] for row in rows]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]


def test_above_the_target_the_controller_may_still_give_a_bonus(make_trainer):
    """TRL drops the bonus above the target; the integral of a controller must be able to hold it."""
    trainer = make_trainer(use_adaptive_entropy=True, entropy_controller="pi", entropy_target=0.5, max_steps=3)
    trainer._bonus.controller.integral = 0.4
    trainer._bonus.controller.kp = 0.0
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert all(row["entropy"] > 0.5 and row["entropy_coef"] > 0.3 for row in rows)
    assert trainer._last_world_entropy <= 0.5


def test_band_worked_example():
    controller = BandController((0.1, 0.5), 1e-3, 0.001, (1e-5, 0.01), warmup=0, target=0.2)
    found = [controller.update(entropy) for entropy in (0.05, 0.08, 0.3, 0.6, 0.6)]
    assert found == pytest.approx([0.00105, 0.00107, 0.00107, 0.00097, 0.00087], abs=1e-12)


def test_band_stays_in_its_box_and_never_winds_up():
    controller = BandController((0.1, 0.5), 1e-3, 5.0, (1e-5, 0.01), warmup=0, target=0.2)
    assert controller.coef == 0.01
    assert [controller.update(9.0) for _ in range(50)][-1] == 1e-5
    assert controller.update(0.0) == pytest.approx(1e-5 + 1e-4)
    assert [controller.update(0.0) for _ in range(200)][-1] == 0.01


def test_band_waits_for_its_warmup():
    controller = BandController((0.1, 0.5), 1e-3, 0.001, (1e-5, 0.01), warmup=2, target=0.2)
    assert [controller.update(1.5) for _ in range(3)] == pytest.approx([0.001, 0.001, 1e-5])


def test_band_in_training_and_across_a_checkpoint(make_trainer, tmp_path):
    settings = dict(
        use_adaptive_entropy=True,
        entropy_controller="band",
        entropy_coef=0.3,
        entropy_controller_low=3.0,
        entropy_controller_high=3.1,
        entropy_controller_lr=0.1,
        entropy_controller_box=[0.0, 1.0],
        entropy_controller_warmup=2,
        max_steps=6,
        save_strategy="steps",
        save_steps=1,
        gradient_accumulation_steps=2,
    )
    whole = make_trainer(output_dir=tmp_path / "whole", **settings)
    whole.train()
    rows = [row for row in whole.state.log_history if "loss" in row]
    controller = BandController((3.0, 3.1), 0.1, 0.3, (0.0, 1.0), 2, 0.2)
    expected = [controller.update(row["entropy"]) for row in rows]
    assert expected[0] == expected[1] < expected[2]
    # The logged entropy averages over micro-batches, TRL's measurement over their tokens.
    assert [row["entropy_coef"] for row in rows] == pytest.approx(expected, rel=0.1)
    settings["save_strategy"] = "no"
    for step in (1, 3):
        resumed = make_trainer(output_dir=tmp_path / f"from{step}", model=build_model(seed=1), **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        again = [row for row in resumed.state.log_history if "loss" in row]
        assert [row["entropy_coef"] for row in again] == [row["entropy_coef"] for row in rows]
        assert [row["loss"] for row in again] == [row["loss"] for row in rows]
        assert resumed._stateful["entropy_bonus"].state_dict() == whole._stateful["entropy_bonus"].state_dict()


def test_band_keeps_its_bonus_above_the_target_of_trl(make_trainer):
    trainer = make_trainer(
        use_adaptive_entropy=True, entropy_controller="band", entropy_coef=0.3, entropy_controller_box=[0.2, 1.0],
        entropy_controller_high=9.0, max_steps=3,
    )  # fmt: skip
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert trainer._last_world_entropy <= trainer.args.entropy_target < rows[1]["entropy"]
    assert [row["entropy_coef"] for row in rows] == [0.3] * 3
    bonus = [row["policy_loss"] - row["loss"] for row in rows]  # from the second step, as with TRL's controller
    assert bonus == pytest.approx([0, 0.3 * rows[1]["entropy"], 0.3 * rows[2]["entropy"]], abs=1e-4)
