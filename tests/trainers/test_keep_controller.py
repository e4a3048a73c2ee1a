# Copyright 2026 The trl-entropy Authors.
# SPDX-License-Identifier: Apache-2.0
"""The controller of `entropy_keep` as a pure function of entropies."""

import json
import math
import random

import pytest

from trl_entropy.trainers.keep_controller import KeepController, slope


ENTROPIES = (
    *(0.200, 0.206, 0.198, 0.196, 0.192, 0.190, 0.186, 0.184, 0.181, 0.178),
    *(0.172, 0.168, 0.166, 0.165, 0.170, 0.178, 0.184, 0.186, 0.120, 0.175),
)
# x, e, a, K, ln c, ln u, u of batches 3 to 19, computed once by hand-written equations in float64.
WORKED = """
-1.6183569998 -0.0964414283 0.0100000000 33.33333333 -6.9077552790 -10.1224695562 4.016680876e-05
-1.6343084534 -0.0804899747 0.0100000000 33.33333333 -6.9077552790 -9.5907544365 6.835783051e-05
-1.6475198301 -0.0672785980 0.0100000000 33.33333333 -6.9077552790 -9.1503752123 0.0001061799552
-1.6647642177 -0.0500342104 0.0100000000 33.33333333 -6.9077552790 -8.5755622927 0.0001886603419
-1.6787918695 -0.0360065586 0.0100000000 33.33333333 -6.9077552790 -8.1079738978 0.0003011283724
-1.6940250586 -0.0207733695 0.0100000000 33.33333333 -6.9077552790 -7.6002009280 0.0005003508888
-1.7099983937 -0.0048000344 0.0150829693 22.09998093 -6.9077552790 -7.0138359485 0.0008993520949
-1.7351295979 +0.0203311698 0.0176719029 18.86233395 -6.8598186146 -6.4763252999 0.001539457342
-1.7594604487 +0.0446620207 0.0177455751 18.78402543 -6.7549520482 -5.9160195164 0.002695909873
-1.7776139697 +0.0628155416 0.0186414404 17.88130782 -6.6145490438 -5.4913250086 0.004122378367
-1.7897118874 +0.0749134593 0.0186041575 17.91714211 -6.4467696568 -5.1045345610 0.006069163083
-1.7808343647 +0.0660359366 0.0185669492 17.95304820 -6.2985763628 -5.1130300105 0.006017821209
-1.7534030467 +0.0386046186 0.0185298153 17.98902625 -6.2117689256 -5.5173094284 0.004016640475
-1.7231112840 +0.0083128559 0.0184927556 18.02507641 -6.1930389427 -6.0431990794 0.002373952291
-1.7025599446 -0.0122384834 0.0184557701 18.06119881 -6.2206691530 -6.4417108356 0.001593677826
-1.9114117404 +0.1966133123 0.0184188586 18.09739359 -5.4512729868 -5.3430985469 0.004781033479
-1.8271905227 +0.1123920946 0.0183820209 18.13366091 -5.1885796088 -4.2444862583 0.01434310044
"""
ROWS = [[float(number) for number in line.split()] for line in WORKED.strip().splitlines()]


def controller(low=1e-6, high=10.0, start=1e-3, keep=0.9, **settings):
    return KeepController(math.log(low), math.log(high), math.log(start), keep, **settings)


def test_worked_example():
    found = controller()
    assert [found.update(entropy, 0.0) for entropy in ENTROPIES[:3]] == [math.log(1e-6)] * 3
    assert found.reference is found.target is None
    for entropy, row in zip(ENTROPIES[3:], ROWS, strict=True):
        output = found.update(entropy, 0.0)
        values = [found.smoothed, found.error, found.fall, found.gain, found.memory, output, math.exp(output)]
        assert values == pytest.approx(row, rel=2e-9, abs=1e-10)
        assert found.target == pytest.approx(0.18)
    assert found.reference == pytest.approx(0.2) and found.reached and not found.saturated


def test_slope():
    assert slope([1.0, 3.0, 5.0, 7.0]) == pytest.approx(2.0)
    assert slope([0.0, 1.0, 0.0]) == pytest.approx(0.0)


def test_state_goes_through_json():
    first, second = controller(), controller()
    for entropy in ENTROPIES[:12]:
        first.update(entropy, 0.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    later = [first.update(entropy, 0.0) for entropy in ENTROPIES[12:]]
    assert [second.update(entropy, 0.0) for entropy in ENTROPIES[12:]] == later
    assert later == pytest.approx([row[5] for row in ROWS[9:]], rel=1e-9)


def test_target_on_its_way_to_the_end_is_the_geometric_mean():
    found = controller(keep=0.9, keep_end=0.4, reference=0.5)
    for done, share in ((0.0, 0.9), (0.5, 0.6), (1.0, 0.4)):
        found.update(0.5, done)
        assert found.target == pytest.approx(0.5 * share)


def test_given_reference_is_in_force_at_once():
    found = controller(reference=0.4)
    # e = ln 0.36 - ln 0.35, K = 100/3: c moves by p / 8 and the output is c + p, not limited.
    push = math.log(0.36 / 0.35) / 0.03
    assert found.update(0.35, 0.0) == pytest.approx(math.log(1e-3) + push + push / 8)
    assert found.reference == 0.4


@pytest.mark.parametrize("fall, gain", [(0.0, 60.0), (0.1, 1 / 0.3), (0.3, 2.0)])
def test_gain_is_the_inverse_of_the_fall_within_bounds(fall, gain):
    """No fall for long: a stands at its least, 0.002, and 1 / (3 * 0.002) = 167 is cut to 60."""
    found = controller()
    for number in range(1200 if not fall else 12):
        found.update(0.5 * math.exp(-fall * number), 0.0)
    assert found.gain == pytest.approx(gain)
    assert found.fall == pytest.approx(max(fall, 0.002))


def test_output_stays_in_its_bounds_and_moves_by_at_most_a_factor_of_three():
    found = controller(low=1e-3, high=2e-3, start=1e-3, reference=1.0)
    outputs = [found.update(entropy, 0.0) for entropy in (1.0, *[0.2] * 30)]
    assert all(math.log(1e-3) <= output <= math.log(2e-3) for output in outputs)
    assert outputs[0] == math.log(1e-3) and outputs[2:] == [math.log(2e-3)] * 29
    assert found.saturated_for == 30 and found.saturated
    found = controller(reference=1.0)
    outputs = [found.update(entropy, 0.0) for entropy in (1.0, *[0.2] * 30)]
    steps = [after - before for before, after in zip(outputs, outputs[1:], strict=False)]
    assert max(steps) == pytest.approx(math.log(3))


def test_memory_waits_while_entropy_falls_to_the_target_by_itself():
    found = controller(reference=1.0, keep=0.5)
    for number in range(30):
        found.update(math.exp(-0.02 * number), 0.0)
    assert found.memory == math.log(1e-3) and found.error < 0
    for _ in range(30):  # it falls no more, above the target: the memory goes down
        found.update(0.57, 0.0)
    assert found.memory < math.log(1e-3) - 1


def test_memory_stands_still_beyond_the_bounds():
    found = controller(high=1e-3, reference=1.0)
    for _ in range(40):
        found.update(0.5, 0.0)
    assert found.memory == math.log(1e-3)
    found.update(0.95, 0.0)
    assert found.memory < found.high + 1e-12


def test_entropy_of_nothing_counts_as_a_ten_thousandth_of_a_nat():
    found = controller()
    for _ in range(5):
        found.update(0.0, 0.0)
    assert found.reference == pytest.approx(1e-4) and found.smoothed == pytest.approx(math.log(1e-4))


def plant(settings, noise, seed, delay):
    """Mean and rms of ln(H / T) over the last half of 100 batches of d ln H = -a + a G u / (u + κ)."""
    draws = random.Random(seed)
    strongest, fall, ratio, keep = settings
    held = 1e-3 * ratio  # where the plant stands still: u* = κ / (G - 1)
    kappa = held * (strongest - 1)
    found = controller(keep=keep)
    log, strengths, deviations = math.log(0.5), [1e-6] * (1 + delay), []
    for number in range(100):
        strengths.append(math.exp(found.update(math.exp(log + draws.gauss(0, noise)), 0.0)))
        if number >= 50:
            deviations.append(log - math.log(found.target))
        strength = strengths[-1 - delay]
        log += -fall + fall * strongest * strength / (strength + kappa)
    mean = sum(deviations) / len(deviations)
    return mean, math.sqrt(sum(value**2 for value in deviations) / len(deviations))


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("noise", [0.0, 0.016, 0.031])
def test_holds_plants_of_very_different_strengths(noise, delay):
    cases = [
        (strongest, fall, ratio, keep)
        for strongest in (1.5, 2, 4)
        for fall in (0.005, 0.01, 0.03)
        for ratio in (0.03, 0.3, 1, 10, 100)
        for keep in (0.75, 0.9)
    ]
    seeds = range(3 if noise else 1)  # the noise of the starting value is part of a single run's deviation
    found = [[plant(case, noise, 1000 * seed + place, delay) for seed in seeds] for place, case in enumerate(cases)]
    means = [sum(mean for mean, _ in runs) / len(seeds) for runs in found]
    assert max(map(abs, means)) < 0.07
    squares = [rms for runs in found for _, rms in runs]
    assert sum(squares) / len(squares) < 0.025
