import jax
import jax.numpy as jnp
import numpy as np

from lmscale.training.loss import losses_in_pieces, token_losses


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


def test_pieces_give_every_token_its_own_loss():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(3, 8, 5)), jnp.float32(rng.normal(size=(5, 40)))
    targets = jnp.int32(rng.integers(0, 40, (3, 8)))

    def losses(n_pieces):
        return losses_in_pieces(lambda x: x @ head, jnp.float32(hidden), targets, n_pieces)

    np.testing.assert_allclose(losses(4), losses(1), rtol=1e-6)
    assert len(np.unique(losses(1))) == 24
