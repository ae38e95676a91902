"""Kernels written by hand, interpreted, against the forms that XLA compiles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.cells import _lstm as vsml_cell
from metajax.optim._lstm_kernel import pallas_step, xla_step

P = 10.0
pytestmark = pytest.mark.slow  # to interpret takes long to compile


def case(hidden, num_coordinates, p=P, dtype=jnp.float32):
    """Meta-parameters, gradients of many sizes, and states that are not zero."""
    optimizer = mx.optim.lstm(p=p, hidden=hidden, state_dtype=dtype)
    meta_params = optimizer.init(jax.random.key(0))
    rng = np.random.default_rng(num_coordinates)
    sizes = np.exp(-15 * rng.random(num_coordinates))
    grad = jnp.float32(sizes * rng.normal(size=num_coordinates))
    state = optimizer.tx(meta_params).init(grad)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state
    )
    return meta_params, grad, state


def assert_close(found, expected, tolerance=1e-6):
    """As a share of the largest value of a leaf, or of 1 if that is larger."""

    def check(x, y):
        scale = max(1.0, np.abs(y, dtype=np.float32).max(initial=0))
        np.testing.assert_allclose(
            np.float32(x), np.float32(y), rtol=0, atol=tolerance * scale
        )

    jax.tree.map(check, found, expected)


@pytest.mark.parametrize(
    ("hidden", "num_coordinates", "p"),
    [((20, 20), 150, P), ((20,), 1, None), ((3, 33), 64, 5.0), ((20, 20), 0, P)],
)
def test_outputs_and_states(hidden, num_coordinates, p):
    arguments = case(hidden, num_coordinates, p)
    found = jax.jit(partial(pallas_step, p, True))(*arguments)
    assert_close(found, jax.jit(partial(xla_step, p, 0))(*arguments))


def test_states_in_half_precision_are_computed_with_in_float32():
    arguments = case((20, 20), 70, dtype=jnp.bfloat16)
    found = jax.jit(partial(pallas_step, P, True))(*arguments)
    expected = jax.jit(partial(xla_step, P, 0))(*arguments)
    assert found[1].h[0].dtype == jnp.bfloat16
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1], 1e-2)  # of which a rounding may differ


def test_derivatives_in_both_modes():
    arguments = case((8,), 70)

    def derivatives(step):
        tangents = jax.tree.map(jnp.ones_like, arguments)
        _, forward = jax.jvp(step, arguments, tangents)
        _, transposed = jax.vjp(step, *arguments)
        return forward, transposed(forward)

    kernel = jax.jit(partial(derivatives, partial(pallas_step, P, True)))
    xla = jax.jit(partial(derivatives, partial(xla_step, P, 0)))
    assert_close(kernel(), xla())


@pytest.mark.parametrize("in_axes", [(None, 0, 0), (0, None, None), (0, 0, 0)])
def test_over_tasks_and_over_members_of_a_population(in_axes):
    arguments = case((8,), 70)

    def several(x, axis):
        stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2, -leaf]), x)
        return x if axis is None else stacked

    batch = [several(x, axis) for x, axis in zip(arguments, in_axes, strict=True)]
    found = jax.jit(jax.vmap(partial(pallas_step, P, True), in_axes))(*batch)
    assert_close(found, jax.jit(jax.vmap(partial(xla_step, P, 0), in_axes))(*batch))


def meta_gradient(make, learner, tasks):
    """Of episodes of three steps, by the estimator that ``make`` makes of their loop."""
    estimator = make(mx.inner(learner, tasks, horizon=3))
    meta_params = learner.meta(jax.random.key(0))
    state = jax.jit(estimator.init)(jax.random.key(1), meta_params, ())
    step = jax.jit(estimator.estimate)
    updates = step(jax.random.key(2), meta_params, state, ())[0].updates
    assert optax.tree.norm(updates) > 0
    return updates


MAKE = {
    "bptt": lambda loop: mx.bptt(loop, 2),
    "es": lambda loop: mx.es(loop, 2, 0.1),
    "forward": lambda loop: mx.forward_gradient(loop, 2),
}


@pytest.mark.parametrize("estimator", MAKE)
def test_meta_gradients_of_the_optimizer(estimator):
    problem = mx.problems.quadratic()
    tasks = mx.tasks.quadratics(5)

    def updates(kernel):
        learner = mx.l2l(mx.optim.lstm(hidden=(4,), kernel=kernel), problem)
        return meta_gradient(MAKE[estimator], learner, tasks)

    assert_close(updates("interpreted"), updates("xla"))


def cells(lead, inputs, outputs, hidden, up, down):
    """Parameters, states and messages of a grid of cells."""
    cell = mx.cells.lstm(hidden, slots=8)
    gates = cell.init(jax.random.key(0))["gates"]
    rng = np.random.default_rng(inputs)

    def normal(*shape):
        return jnp.float32(rng.normal(size=(*lead, *shape)))

    state = (normal(inputs, outputs, hidden), normal(inputs, outputs, hidden))
    return gates, state, normal(inputs, up), normal(outputs, down)


@pytest.mark.parametrize(
    ("lead", "inputs", "outputs", "hidden", "up", "down"),
    [
        ((), 7, 3, 16, 8, 8),
        ((2, 3), 5, 10, 16, 1, 8),
        ((1,), 70, 2, 5, 3, 2),
        ((1,), 0, 2, 5, 3, 2),
    ],
)
def test_states_of_a_grid(lead, inputs, outputs, hidden, up, down):
    arguments = cells(lead, inputs, outputs, hidden, up, down)
    found = jax.jit(partial(vsml_cell._step_of_one_kernel, 2, True))(*arguments)
    assert_close(found, jax.jit(partial(vsml_cell._step, 2))(*arguments))


def test_derivatives_of_a_grid_in_both_modes():
    arguments = cells((2,), 3, 4, 5, 2, 8)

    def derivatives(step):
        tangents = jax.tree.map(jnp.ones_like, arguments)
        _, forward = jax.jvp(step, arguments, tangents)
        _, transposed = jax.vjp(step, *arguments)
        return forward, transposed(forward)

    kernel = partial(vsml_cell._step_of_one_kernel, 2, True)
    found = jax.jit(partial(derivatives, kernel))()
    xla = jax.jit(partial(derivatives, partial(vsml_cell._step, 2)))()
    assert_close(found, xla)


@pytest.mark.parametrize("estimator", ["bptt", "es"])
@pytest.mark.parametrize("sizes", [(6, 3), (6, 4, 3)])
def test_meta_gradients_of_vsml(estimator, sizes):
    tasks = mx.tasks.prototypes(3, (6,))

    def updates(kernel):
        learner = mx.vsml(sizes, mx.cells.lstm(5, slots=2, kernel=kernel))
        return meta_gradient(MAKE[estimator], learner, tasks)

    assert_close(updates("interpreted"), updates("xla"))


def test_where_it_cannot_run_it_says_so():
    with pytest.raises(ValueError, match=r"needs a GPU.*runs on the cpu here: leave"):
        mx.optim.lstm(kernel="pallas")
    with pytest.raises(ValueError, match=r"needs a GPU.*runs on the cpu here: leave"):
        mx.cells.lstm(kernel="pallas")
    with pytest.raises(ValueError, match=r"averaged is 2.*leave kernel out"):
        mx.optim.lstm(kernel="interpreted", averaged=2)
    with pytest.raises(ValueError, match="kernel must be 'xla' or 'pallas'"):
        mx.optim.lstm(kernel="triton")  # pyright: ignore
