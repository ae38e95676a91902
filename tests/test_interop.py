"""Models of other libraries as problems: the same loss, gradient and training as the package's own
perceptron.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import metajax as mx

OURS = mx.problems.mlp((64, 6, 10))
BATCH = mx.tasks.minibatches(16).train(jax.random.key(0), mx.data.load("digits"), ())


def by_linen(weights):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.sigmoid(linen.Dense(6)(x.reshape(len(x), -1)))
            return linen.Dense(10)(x)

    model = Net()
    params = {
        f"Dense_{i}": {"kernel": layer["w"], "bias": layer["b"]}
        for i, layer in enumerate(weights)
    }
    return lambda key: params, lambda params, x: model.apply({"params": params}, x)


def by_nnx(weights):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = (
                nnx.Linear(64, 6, rngs=rngs),
                nnx.Linear(6, 10, rngs=rngs),
            )

        def __call__(self, x):
            return self.second(jax.nn.sigmoid(self.first(x.reshape(len(x), -1))))

    model = Net(nnx.Rngs(0))
    for layer, values in zip((model.first, model.second), weights, strict=True):
        layer.kernel, layer.bias = nnx.Param(values["w"]), nnx.Param(values["b"])
    graph, params = nnx.split(model)
    return lambda key: params, lambda params, x: nnx.merge(graph, params)(x)


def by_equinox(weights):
    model = eqx.nn.MLP(64, 10, 6, 1, jax.nn.sigmoid, key=jax.random.key(0))
    for i, values in enumerate(weights):
        layers = lambda m, i=i: (m.layers[i].weight, m.layers[i].bias)  # noqa: E731
        model = eqx.tree_at(layers, model, (values["w"].T, values["b"]))
    params, static = eqx.partition(model, eqx.is_array)
    return lambda key: params, lambda params, x: jax.vmap(eqx.combine(params, static))(
        x.reshape(len(x), -1)
    )


@pytest.mark.parametrize("library", [by_linen, by_nnx, by_equinox])
@pytest.mark.slow
def test_a_model_of_another_library_is_a_problem(library, key):
    weights, _ = OURS.init(jax.random.key(1), ())
    theirs = mx.problems.classifier(*library(weights))
    ours = replace(OURS, init=lambda key, task: (weights, ()))
    opt = mx.optim.lstm(hidden=(4,))
    tx = opt.tx(opt.init(jax.random.key(2)))

    @jax.jit
    def losses(key):
        # The problem under a learned optimizer, a few steps on one batch: states of the right
        # structure all the way.
        found = []
        for problem in (ours, theirs):
            learner = mx.l2l(
                lambda _: optax.chain(optax.clip_by_global_norm(1.0), tx), problem
            )
            state, kept = learner.init(key, (), ()), []
            for _ in range(3):
                state, loss, _ = learner.step(key, (), state, BATCH)
                kept.append(loss)
            found.append(jnp.stack(kept))
        return found

    want, got = losses(key)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert want[0] != want[2]


@pytest.mark.parametrize("library", [by_linen, by_nnx, by_equinox])
@pytest.mark.slow
def test_such_a_model_has_the_same_gradient(library, key):
    weights, _ = OURS.init(key, ())
    theirs = mx.problems.classifier(*library(weights))

    def squares(problem):
        """The sums of squares of the gradients of all parameters, in order of size."""
        params, state = problem.init(key, ())
        grads = jax.grad(lambda p: problem.loss(key, p, state, BATCH)[0])(params)
        return sorted(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads))

    np.testing.assert_allclose(squares(OURS), squares(theirs), rtol=1e-4)
