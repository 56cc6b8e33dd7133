"""Attention is the time that a face is turned to the screen, not counted on and off at the edge."""

from __future__ import annotations

import numpy as np
import pytest

from agelens.errors import ArgumentError
from agelens.video.attention import Attention, AttentionRules

STEP_S = 0.125
AT_ONCE = AttentionRules(yaw=25, pitch=20, release=8, least_s=0, smooth_s=0)


def watched(yaws: list[float], rules: AttentionRules = AT_ONCE, pitch: float = 0.0) -> Attention:
    attention = Attention(rules)
    for step, yaw in enumerate(yaws):
        attention.see(STEP_S * step, yaw, pitch)
    return attention


def test_the_time_counts_that_a_face_is_turned_to_the_screen() -> None:
    there_and_away = watched([0.0] * 17 + [60.0] * 16)

    assert there_and_away.seconds == pytest.approx(17 * STEP_S)
    assert not there_and_away.now


def test_a_face_at_the_edge_stays_attentive_until_it_turns_clearly_away() -> None:
    to_and_fro = [20.0, *[24.0, 30.0] * 20]

    assert watched(to_and_fro).seconds == pytest.approx(40 * STEP_S)
    assert watched([30.0, *to_and_fro[1:]]).seconds == pytest.approx(39 * STEP_S)
    assert watched([30.0] * 40).seconds == 0
    assert not watched([20.0, 24.0, 34.0]).now


def test_a_screen_beside_the_camera_is_looked_at_from_the_side() -> None:
    rules = AttentionRules(screen_yaw=40, screen_pitch=-10, least_s=0, smooth_s=0)

    assert watched([40.0] * 9, rules, -10.0).seconds == pytest.approx(8 * STEP_S)
    assert watched([0.0] * 9, rules, -10.0).seconds == 0


def test_a_glance_is_no_attention() -> None:
    rules = AttentionRules(least_s=0.5, smooth_s=0)

    assert watched([0.0] * 3 + [90.0] * 10 + [0.0] * 3, rules).seconds == 0
    assert watched([0.0] * 5 + [90.0] * 10, rules).seconds == pytest.approx(5 * STEP_S)


def test_noise_of_the_pose_is_averaged() -> None:
    noisy = list(np.random.default_rng(1).normal(12, 15, 400))

    smooth = watched(noisy, AttentionRules(least_s=0))

    assert smooth.seconds > watched(noisy).seconds
    assert smooth.seconds > 0.9 * 400 * STEP_S


def test_time_out_of_view_and_without_a_pose_does_not_count() -> None:
    attention = Attention(AT_ONCE)
    attention.see(0.0, 0.0, 0.0)
    attention.see(0.5, 0.0, 0.0)
    attention.see(3.0, 0.0, 0.0)  # longer than hold_s
    attention.see(3.5, None, None)
    attention.see(4.0, 0.0, 0.0)
    attention.pause()
    attention.see(4.5, 0.0, 0.0)

    assert attention.seconds == pytest.approx(1.0)


@pytest.mark.parametrize("changes", [{"yaw": -1}, {"pitch": 91}, {"hold_s": float("nan")}], ids=str)
def test_rules_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(changes))):
        AttentionRules(**changes)
