import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.training.loss import losses_in_pieces, mean_loss_in_pieces, token_losses


def test_cross_entropy_against_float64():
    rng = np.random.default_rng(0)
    logits, targets = 10 * rng.normal(size=(3, 5, 40)), rng.integers(0, 40, (3, 5))
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    want = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    got = token_losses(jnp.float32(logits), jnp.int32(targets))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_huge_logits_do_not_overflow_and_the_gradient_is_probabilities_less_one_hot():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert float(token_losses(logits, jnp.array([0]))[0]) == 0.0
    logits = jnp.array([[0.3, -0.2, 1.1]])
    gradient = jax.grad(lambda x: token_losses(x, jnp.array([1])).sum())(logits)
    want = jax.nn.softmax(logits) - jnp.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(gradient, want, atol=1e-6)


def head_problem():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(3, 8, 5)), rng.normal(size=(5, 40))
    targets = jnp.int32(rng.integers(0, 40, (3, 8)))
    return lambda head, x: x @ head, jnp.float32(head), jnp.float32(hidden), targets


def test_pieces_give_every_token_its_own_loss():
    whole = losses_in_pieces(*head_problem(), 1)
    np.testing.assert_allclose(losses_in_pieces(*head_problem(), 4), whole, rtol=1e-6)
    assert len(np.unique(whole)) == 24


@pytest.mark.parametrize("n_pieces", [1, 2, 8])
def test_the_mean_loss_and_its_gradients_are_those_of_the_tokens_losses(n_pieces):
    logits, *arguments, targets = head_problem()

    def plain(head, hidden):
        log_p = jax.nn.log_softmax(logits(head, hidden))
        return -0.7 * jnp.take_along_axis(log_p, targets[..., None], -1).mean()

    def ours(head, hidden):
        return 0.7 * mean_loss_in_pieces(logits, head, hidden, targets, n_pieces)

    expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(*arguments)
    got = jax.jit(jax.value_and_grad(ours, (0, 1)))(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), got, expected)


def test_no_logits_outlive_their_piece():
    """What the forward pass keeps are gradients, of the hidden states' and the head's own sizes."""
    logits, head, hidden, targets = head_problem()
    _, backward = jax.vjp(lambda *x: mean_loss_in_pieces(logits, *x, targets, 4), head, hidden)
    sizes = {x.shape for x in jax.tree.leaves(backward)}
    assert sizes <= {head.shape, hidden.shape, ()}
