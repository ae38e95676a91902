"""Products that are small and decide everything ask for all bits of float32 themselves.

In the traced program, derivatives included: on a CPU precision changes nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import MINIBATCHES, System, learners
from test_low_rank import recurrent
from test_optim import OPTS

import metajax as mx
from benchmarks.rounding import in_tf32, precisions, to_tf32
from metajax.learners._delta_rule import Writes, read_and_write

SYSTEMS = learners()
IMAGES = SYSTEMS["maml"].data
STREAM = SYSTEMS["vsml"]  # tasks for learners in their activations

OF_TEST_OPTIM = (
    "averaged",
    "rnnprop",
    "ntm_bfgs",
    "ntm_lbfgs",
    "mlp",
    "adafactor_mlp",
    "mlp_schedule",
)
GRADS = {"w": jnp.ones((2, 3)), "v": jnp.ones(3)}
OPTIMIZERS = {name: OPTS[name] for name in OF_TEST_OPTIM} | {
    "lstm": mx.optim.lstm(hidden=(3, 2)),
    "celo": mx.optim.celo(3),
    "celo2_base": mx.optim.celo2_base(),
    "leafwise": mx.optim.leafwise(mx.optim.lstm(hidden=(3,))),
}


def vsml(cell, **options):
    return STREAM._replace(learner=mx.vsml((4, 3), cell, **options))


NETWORKS = {
    "vsml": vsml(mx.cells.lstm(3, 2)),
    "vsml_normalised": vsml(mx.cells.lstm(3, 2, layer_norm=True)),
    "vsml_two_sweeps": vsml(
        mx.cells.with_weights(mx.cells.lstm(3, 1)), backward_pass=True
    ),
    "vsml_rnn": vsml(mx.cells.rnn(3)),
    **{
        name: SYSTEMS[name]
        for name in ("meta_rnn", "hebbian", "fast_weight_memory", "external_memory")
    },
}


def in_a_meta_step(system, estimator=lambda loop: mx.bptt(loop, 2)):
    """The products of a meta-gradient, by precision."""
    loop = mx.inner(system.learner, system.tasks, 2)
    estimator = estimator(loop)
    key = jax.random.key(0)
    meta_params = jax.eval_shape(system.learner.meta, key)
    state = jax.eval_shape(estimator.init, key, meta_params, system.data)
    estimate = estimator.estimate
    return precisions(estimate, key, meta_params, state, system.data)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learned_optimizers(name):
    """An update, and how it depends on everything."""
    opt = OPTIMIZERS[name]

    def total(meta_params, grads):
        tx = optax.with_extra_args_support(opt.tx(meta_params))
        updates, _ = tx.update(grads, tx.init(grads), grads, value=1.0)
        return sum(x.sum() for x in updates.values())

    meta_params = jax.eval_shape(opt.init, jax.random.key(0))
    found = precisions(jax.grad(total, (0, 1)), meta_params, GRADS)
    assert not found["default"]
    assert found["highest"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_learn_by_themselves(name):
    found = in_a_meta_step(NETWORKS[name])
    assert not found["default"]
    assert found["highest"]


def test_kernels_by_hand():
    """What is compiled shows nothing of the products within."""
    optimizer = mx.optim.lstm(hidden=(3, 2), kernel="interpreted")

    def update(meta_params):
        tx = optimizer.tx(meta_params)
        return tx.update(GRADS, tx.init(GRADS))

    shapes = jax.eval_shape(optimizer.init, jax.random.key(0))
    # Of each gate with the states, in the second layer with its inputs too.
    assert precisions(update, shapes) == {"highest": 4 + 8}

    cell = mx.cells.lstm(3, 2, ticks=2, kernel="interpreted")
    state = jnp.ones((1, 4, 3, 3))
    up, down = jnp.ones((1, 4, 2)), jnp.ones((1, 3, 2))
    params = jax.eval_shape(cell.init, jax.random.key(0))
    # Of each gate with either message, and at each tick with the states.
    found = precisions(cell.step, params, (state, state), up, down)
    assert found == {"highest": 8 + 2 * 4}


def test_minimal_vsml_in_both_views():
    w, state = jnp.ones((2, 2)), jnp.ones((3, 3, 2))
    both = precisions(
        lambda w: (
            mx.cells.minimal_vsml(w, w, state),
            mx.cells.shared_matrix(w, w, 3, 2),
        ),
        w,
    )
    assert not both["default"]


def test_the_memory_of_the_delta_rule_but_not_its_layers():
    rows = jnp.ones((4, 3))
    writes = Writes(rows, rows, rows, jnp.ones(4), -jnp.ones(4))

    def total(memory):
        found, memory = read_and_write(memory, writes, chunk=2)
        return found.sum() + memory.sum()

    found = precisions(jax.grad(total), jnp.ones((3, 3)))
    assert found["highest"]
    assert not found["default"]
    assert in_a_meta_step(SYSTEMS["delta_rule"])["default"]


@pytest.mark.parametrize("name", ["protonet", "ridge"])
def test_few_shot_heads(name):
    """Given embeddings, with nothing to compute them from."""
    make = {"protonet": mx.protonet, "ridge": mx.ridge}[name]

    def embed(w, images):
        return w * images.reshape(len(images), -1)[:, :3]

    learner = make((lambda key: jnp.float32(1.0), embed), 3, 3)
    found = in_a_meta_step(System(learner, MINIBATCHES, IMAGES))
    assert not found["default"]
    assert found["highest"]


EVOLUTION = {
    "es": lambda loop: mx.es(loop, 2, 0.1),
    "pes": lambda loop: mx.pes(loop, 2, 0.1, 1),
    "guided_es": lambda loop: mx.guided_es(loop, 2, 0.1, surrogate=mx.bptt(loop, 1)),
    "low_rank": lambda loop: mx.es(loop, 2, 0.1, mx.low_rank()),
}


@pytest.mark.parametrize("name", EVOLUTION)
def test_noise_and_its_weighted_sum(name):
    """The network, which is elementwise, has no products."""

    def meta(key):
        return jnp.ones((8, 8))

    def step(key, m, state, batch):
        return state, (m**2).sum(), {}

    def test(key, m, state, batch):
        return (m**2).sum(), {}

    learner = mx.Learner(lambda key, m, task: (), step, test, meta=meta)
    found = in_a_meta_step(System(learner, MINIBATCHES, IMAGES), EVOLUTION[name])
    assert not found["default"]
    assert found["highest"]


def test_of_a_shared_matrix_the_network_keeps_the_default_and_the_noise_does_not():
    system = System(recurrent(8), MINIBATCHES, IMAGES)

    def by(shared):
        return lambda loop: mx.es(loop, 2, 0.1, mx.low_rank(shared=shared))

    apart, shared = (in_a_meta_step(system, by(kind)) for kind in (False, True))
    assert apart["default"] == shared["default"]
    assert shared["highest"] > apart["highest"]


SOLVERS = {
    "cg": mx.implicit.cg(2),
    "neumann": mx.implicit.neumann(2, 0.1),
    "lanczos": mx.implicit.lanczos(2, floor=0.1),
    "direct": mx.implicit.direct(),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_linear_solvers_multiply_no_matrices(name):
    """Their dot products are sums, which no device rounds."""
    solve = SOLVERS[name]
    found = precisions(lambda b: solve(lambda v: 2 * v, b).x, jnp.ones(3))
    assert not found


@pytest.mark.parametrize("name", ["maml", "imaml", "l2l_lstm", "gpicl"])
def test_networks_of_users_and_of_nets_keep_the_default(name):
    found = in_a_meta_step(SYSTEMS[name])
    assert found["default"]
    assert name == "l2l_lstm" or not found["highest"]


def test_no_configuration_is_left_behind():
    before = jax.config.jax_default_matmul_precision
    in_a_meta_step(NETWORKS["vsml"])
    assert jax.config.jax_default_matmul_precision == before


# Products as a GPU computes them by default.


def test_to_the_nearest_of_ten_bits():
    x = np.float32([1 + 2**-11 - 2**-20, 1 + 2**-11, -1 - 2**-11, 3e38, 0, np.inf])
    want = np.float32([1, 1 + 2**-10, -1 - 2**-10, 3e38, 0, np.inf])
    np.testing.assert_allclose(to_tf32(jnp.asarray(x)), want, rtol=2**-11)
    np.testing.assert_array_equal(to_tf32(jnp.asarray(x))[:3], want[:3])
    assert np.isnan(to_tf32(jnp.float32(np.nan)))


def test_products_are_rounded_in_loops_and_derivatives():
    x = 1 + 2.0**-12 * jnp.ones((2, 2))

    def both(precision):
        def run(x):
            def step(_, y):
                return jnp.matmul(x, y, precision=precision)

            return jax.lax.fori_loop(0, 2, step, x).sum()

        return jax.value_and_grad(run)

    want = both("highest")(jnp.ones((2, 2)))
    jax.tree.map(np.testing.assert_array_equal, in_tf32(both(None))(x), want)
    exact = both("highest")(x)
    jax.tree.map(np.testing.assert_array_equal, in_tf32(both("highest"))(x), exact)
    assert exact[0] > want[0]


def test_convolutions_are_rounded():
    images = jnp.full((1, 3, 3, 1), 1 + 2.0**-12)

    def conv(images):
        return jax.lax.conv(images, jnp.ones((1, 3, 1, 1)), (1, 1), "SAME")

    np.testing.assert_array_equal(in_tf32(conv)(images), conv(jnp.ones_like(images)))
