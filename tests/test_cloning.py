"""Cloning: a cell that computes backpropagation exactly has no loss, and a grid of them is a
network under SGD.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.cells import Cell, recall, store, with_weights
from metajax.cells import lstm as lstm_cell

RATE = 0.05


def ideal_cell():
    """What cloning is after, written down instead of learned: the state is (w, b, x, e)."""

    def step(params, state, forward, backward):
        (s,) = state
        w, b = s[..., 0], s[..., 1]
        x = jnp.broadcast_to(forward[..., :, None, 0], w.shape)
        e = jnp.zeros_like(w)
        if backward.shape[-1]:
            e = jnp.broadcast_to(backward[..., None, :, 0], w.shape)
        back = e * w * (1 - jnp.tanh(x) ** 2)
        y = jnp.tanh(x) * w + b
        return (jnp.stack([w - RATE * e * jnp.tanh(x), b - RATE * e, y, back], -1),)

    return Cell(
        init=lambda key: (),
        state=lambda key, shape: (jnp.zeros((*shape, 4)),),
        step=step,
        forward=lambda params, state, slots: state[0][..., 2:3].sum(-3),
        backward=lambda params, state, slots: state[0][..., 3:4].sum(-2),
        slots=1,
    )


@pytest.mark.slow
def test_the_ideal_cell_has_no_loss_and_another_rate_has_one(x64):
    loop = mx.inner(mx.clone_backprop(ideal_cell(), RATE), mx.tasks.signals(16), 5)
    curves = mx.evaluate(loop, jax.random.key(0), (), num_tasks=2)
    assert np.max(curves.loss) < 1e-25
    assert np.max(curves.metrics["drift"]) < 1e-12
    loop = mx.inner(mx.clone_backprop(ideal_cell(), 2 * RATE), mx.tasks.signals(16), 1)
    # Half of every update is missing: the error is that of 0.5 e tanh(x) and 0.5 e.
    state = loop.init(jax.random.key(1), (), ())
    state, _, metrics = mx.unroll(loop, (), state, (), 1)
    got = metrics["update"]
    key = jax.random.split(jax.random.fold_in(state.key, 0))[0]
    batch = mx.tasks.signals(16).train(key, (), state.task)
    e, x = np.asarray(batch["e"]), np.asarray(batch["x"])
    np.testing.assert_allclose(
        got, 0.25 * np.mean((e * np.tanh(x)) ** 2 + e**2), rtol=1e-4
    )


@pytest.mark.parametrize("sizes", [(5, 3), (5, 4, 3), (3, 4, 5, 2)])
@pytest.mark.slow
def test_a_grid_of_ideal_cells_is_a_network_under_gradient_descent(sizes):
    net = mx.vsml(sizes, with_weights(ideal_cell()), backward_pass=True)

    @jax.jit
    def weights(state):
        return [tuple(x[0, 0] for x in recall(cells)) for cells in state.cells]

    def loss(params, x, y):
        for w, b in params:
            x = jnp.tanh(x) @ w + b.sum(0)
        return optax.softmax_cross_entropy_with_integer_labels(x, y), x

    @jax.jit
    def descend(params, x, y):
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, x, y)
        return value, jax.tree.map(lambda p, g: p - RATE * g, params, grads)

    step = jax.jit(net.step)
    key = jax.random.key(1)
    state = jax.jit(net.init)(jax.random.key(0), (), ())
    params = weights(state)
    for i in range(6):
        x = jax.random.normal(jax.random.fold_in(key, i), (sizes[0],))
        y = jnp.int32(i % sizes[-1])
        want, params = descend(params, x, y)
        state, got, _ = step(key, (), state, {"image": x[None], "label": y[None]})
        np.testing.assert_allclose(
            got, want, rtol=1e-3
        )  # squashing at 100 changes logits in the fourth digit
        for got, want in zip(weights(state), params, strict=True):
            np.testing.assert_allclose(got[0], want[0], atol=1e-4)
            np.testing.assert_allclose(got[1], want[1], atol=1e-4)


def test_weights_are_put_in_and_taken_out():
    cells = (jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)))
    w, b = jax.random.normal(jax.random.key(0), (2, 2, 3))
    got = recall(store(cells, w, b))
    np.testing.assert_array_equal(got[0], w)
    np.testing.assert_array_equal(got[1], b)
    np.testing.assert_array_equal(store(cells, w, b)[0][..., 2:], 1)


@pytest.mark.slow
def test_only_weights_outlast_an_example():
    cell = with_weights(lstm_cell(8, slots=1, reduce="sum"))
    params, x, e = cell.init(jax.random.key(0)), jnp.ones((4, 1)), jnp.ones((3, 1))
    used = cell.step(params, cell.state(jax.random.key(1), (4, 3)), x, e)
    fresh = store(jax.tree.map(jnp.zeros_like, used), *recall(used))
    for got, want in zip(
        cell.step(params, used, x, e[:, :0]),
        cell.step(params, fresh, x, e[:, :0]),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)
    kept, cleared = (cell.step(params, s, x, e) for s in (used, fresh))
    assert np.abs(kept[0] - cleared[0]).max() > 1e-3, "within an example all is kept"


@pytest.mark.slow
def test_fitting_an_lstm_brings_the_error_down():
    clone = mx.clone_backprop(lstm_cell(8, slots=1, reduce="sum"), RATE)
    loop = mx.inner(clone, mx.tasks.signals(64), 1)
    trainer = mx.trainer(mx.bptt(loop, 1), optax.adam(1e-2), chunk=400)
    state = trainer.init(jax.random.key(0), clone.meta(jax.random.key(1)))
    loss = mx.fit(trainer, state, num_steps=400, progress=None).history["loss"]
    assert np.mean(loss[-20:]) < 0.1 * np.mean(loss[:5])


def test_bad_input():
    with pytest.raises(ValueError, match="messages of 1 slot"):
        mx.clone_backprop(lstm_cell(8), RATE)
    with pytest.raises(TypeError, match=r"metajax\.cells\.lstm"):
        mx.clone_backprop(mx.vsml((4, 2)), RATE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="rate must be finite and greater than 0"):
        mx.clone_backprop(ideal_cell(), 0.0)
    with pytest.raises(ValueError, match="num_cells must be at least 1"):
        mx.tasks.signals(0)
