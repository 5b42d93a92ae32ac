"""The published rules give the papers' own numbers."""

from __future__ import annotations

import math

import pytest

from lmscale import hparams

#: Kaplan's rule with the natural logarithm; log10 would give 1.84e-3 at 1e10.
KAPLAN_LR = [
    (1e4, 1.954e-3),
    (1e5, 1.633e-3),
    (1e6, 1.312e-3),
    (1e7, 9.905e-4),
    (1e8, 6.693e-4),
    (1e9, 3.481e-4),
    (1.5e9, 2.915e-4),
    (1e10, 2.69e-5),
]


@pytest.mark.parametrize(("n_params", "expected"), KAPLAN_LR)
def test_kaplan_lr_takes_the_natural_logarithm(n_params, expected):
    assert hparams.kaplan_lr(n_params) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("n_params", [1.01e10, 1.3e10, 1e12])
def test_kaplan_lr_refuses_sizes_beyond_its_limit(n_params):
    with pytest.raises(ValueError, match="1e\\+10"):
        hparams.kaplan_lr(n_params)


def test_rules_at_1e8_parameters_and_2e9_tokens():
    N, D = 1e8, 2e9
    C = 6 * N * D
    assert hparams.kaplan_lr(N) == pytest.approx(6.7e-4, rel=2e-3)
    assert hparams.deepseek_lr(C) == pytest.approx(1.71e-3, rel=3e-3)
    assert hparams.deepseek_batch(C) == pytest.approx(2.39e5, rel=3e-3)
    assert hparams.porian_lr(N) == pytest.approx(4.88e-3, rel=2e-3)
    assert hparams.porian_batch(N) == pytest.approx(3.19e5, rel=3e-3)
    assert hparams.steplaw_lr(N, D) == pytest.approx(2.54e-3, rel=3e-3)
    assert hparams.steplaw_batch(D) == pytest.approx(1.19e5, rel=5e-3)


def test_porian_at_their_largest_model():
    """The 901M model: learning rate 0.00221 and 730 sequences of 2048 by the law."""
    assert hparams.porian_lr(901.726e6) == pytest.approx(0.00221, rel=5e-3)
    assert hparams.porian_batch(901.726e6) / 2048 == pytest.approx(730, rel=1e-2)


def test_porian_beta2_changes_above_192_sequences():
    assert hparams.porian_beta2(64 * 2048) == 0.99
    assert hparams.porian_beta2(192 * 2048) == 0.99
    assert hparams.porian_beta2(193 * 2048) == 0.95


def test_deepseek_flops_are_six_times_the_matrices_plus_full_attention():
    """72 n d^2 is 6 N of the standard shape, 12 n d l the scores with d_attn = d_model."""
    n_layer, d_model, n_ctx = 12, 768, 4096
    N = 12 * n_layer * d_model**2
    expected = 6 * N + 3 * 4 * n_layer * n_ctx * d_model
    assert hparams.deepseek_flops_per_token(n_layer, d_model, n_ctx) == expected


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "rule",
    [
        hparams.kaplan_lr,
        hparams.deepseek_lr,
        hparams.deepseek_batch,
        hparams.porian_lr,
        hparams.porian_batch,
        hparams.porian_beta2,
        hparams.steplaw_batch,
        lambda N: hparams.steplaw_lr(N, 2e9),
        lambda D: hparams.steplaw_lr(1e8, D),
    ],
)
def test_rules_refuse_what_is_not_a_positive_number(rule, value):
    with pytest.raises(ValueError, match="must be a positive number") as error:
        rule(value)
    assert "\n" not in str(error.value)
