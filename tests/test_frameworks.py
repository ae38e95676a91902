"""Models of flax and equinox as problems, against training loops in their own words."""

import re
import sys

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from systems import IMAGES, few_shot

import metajax as mx

RATE, STEPS = 0.2, 4
TASKS = mx.tasks.minibatches(5, test_size=7)


def flat(images):
    return images.reshape(len(images), -1)


class NNXSpectral(nnx.Module):
    """A linear layer over its largest singular value, which is followed by power iteration."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 5, rngs=rngs)
        self.u = nnx.BatchStat(jax.random.normal(rngs.params(), (5,)))
        self.use_running_average = False

    def __call__(self, x):
        w = self.linear.kernel[...]
        v = jax.lax.stop_gradient(w @ self.u[...])
        u = jax.lax.stop_gradient(v @ w)
        v, u = v / jnp.linalg.norm(v), u / jnp.linalg.norm(u)
        if not self.use_running_average:
            self.u[...] = u
        return self.linear(x) / (v @ w @ u)


class NNXNet(nnx.Module):
    """A convolution and all layers that have a state, a key or a mode."""

    def __init__(self, dropout, rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), strides=1, rngs=rngs)
        self.batch_norm = nnx.BatchNorm(2, momentum=0.8, rngs=rngs)
        self.layer_norm = nnx.LayerNorm(8, rngs=rngs)
        self.spectral = NNXSpectral(rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.batch_norm(self.conv(images)))
        x = self.layer_norm(x.reshape(len(x), -1))
        return self.last(self.dropout(nnx.tanh(self.spectral(x))))


class LinenNet(linen.Module):
    dropout: float

    @linen.compact
    def __call__(self, images, training):
        x = linen.Conv(2, (3, 3))(images)
        x = linen.BatchNorm(use_running_average=not training, momentum=0.8)(x)
        x = linen.LayerNorm()(linen.relu(x).reshape(len(x), -1))
        x = linen.SpectralNorm(linen.Dense(5))(x, update_stats=training)
        x = linen.Dropout(self.dropout, deterministic=not training)(linen.tanh(x))
        return linen.Dense(3)(x)


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    batch_norm: eqx.nn.BatchNorm
    layer_norm: eqx.nn.LayerNorm
    spectral: eqx.nn.SpectralNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, dropout, key):
        k_conv, k_hidden, k_spectral, k_last = jax.random.split(key, 4)
        self.conv = eqx.nn.Conv2d(1, 2, 3, padding=1, key=k_conv)
        self.batch_norm = eqx.nn.BatchNorm(2, "batch", momentum=0.8, mode="batch")
        self.layer_norm = eqx.nn.LayerNorm(8)
        hidden = eqx.nn.Linear(8, 5, key=k_hidden)
        self.spectral = eqx.nn.SpectralNorm(hidden, "weight", key=k_spectral)
        self.dropout = eqx.nn.Dropout(dropout)
        self.last = eqx.nn.Linear(5, 3, key=k_last)

    def __call__(self, image, state, *, key):
        x = self.conv(image.transpose(2, 0, 1))
        x, state = self.batch_norm(x, state)
        x = self.layer_norm(jax.nn.relu(x).ravel())
        x, state = self.spectral(x, state)
        return self.last(self.dropout(jnp.tanh(x), key=key)), state


ADAPTED = {
    "nnx": lambda dropout: mx.problems.nnx(lambda rngs: NNXNet(dropout, rngs)),
    "linen": lambda dropout: mx.problems.linen(LinenNet(dropout), (2, 2, 1)),
    "equinox": lambda dropout: mx.problems.equinox(
        lambda key: EquinoxNet(dropout, key)
    ),
}


class Small(linen.Module):
    @linen.compact
    def __call__(self, images, training):
        x = linen.BatchNorm(use_running_average=not training)(flat(images))
        return linen.Dense(3)(linen.Dropout(0.3, deterministic=not training)(x))


def small_nnx(rngs):
    return nnx.Sequential(
        flat,
        nnx.BatchNorm(4, rngs=rngs),
        nnx.Dropout(0.3, rngs=rngs),
        nnx.Linear(4, 3, rngs=rngs),
    )


def small_equinox(key):
    layers = [
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.BatchNorm(4, "batch", mode="batch"),
        eqx.nn.Dropout(0.3),
        eqx.nn.Linear(4, 3, key=key),
    ]
    return eqx.nn.Sequential(layers)


# For the contract: of layers one with a state, one with a key and a mode, and one that learns.
LEARNERS = {
    "nnx": few_shot(mx.maml(mx.problems.nnx(small_nnx), 0.1)),
    "linen": few_shot(
        mx.imaml(
            mx.problems.linen(Small(), (2, 2, 1)),
            mx.implicit.descend(optax.sgd(0.1), 2),
            mx.implicit.cg(2),
            1.0,
        )
    ),
    "equinox": few_shot(
        mx.l2l(mx.optim.lstm(hidden=(3,)), mx.problems.equinox(small_equinox))
    ),
}


def cross_entropy(logits, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean()


def loop_of_nnx(key, batches, last):
    """The losses of training, that of the test, and the parameters and the state at the end."""
    model = NNXNet(0.0, nnx.Rngs(key))
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    losses = []
    model.train()
    for batch in batches:
        loss, grads = nnx.value_and_grad(
            lambda model, batch=batch: cross_entropy(model(batch["image"]), batch)
        )(model)
        optimizer.update(model, grads)
        losses.append(loss)
    model.eval()
    test = cross_entropy(model(last["image"]), last)
    _, params, state, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    return losses, test, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


def loop_of_linen(key, batches, last):
    model = LinenNet(0.0)
    k_params, k_dropout = jax.random.split(key)
    keys = {"params": k_params, "dropout": k_dropout}
    variables = model.init(keys, jnp.zeros((1, 2, 2, 1)), training=False)
    params, state = variables["params"], variables["batch_stats"]
    losses = []
    for batch in batches:

        def loss(params, batch=batch, state=state):
            logits, new = model.apply(
                {"params": params, "batch_stats": state},
                batch["image"],
                training=True,
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, batch), new["batch_stats"]

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
        losses.append(value)
    variables = {"params": params, "batch_stats": state}
    test = cross_entropy(model.apply(variables, last["image"], training=False), last)
    return losses, test, params, {"batch_stats": state}


def loop_of_equinox(key, batches, last):
    model, state = eqx.nn.make_with_state(EquinoxNet)(0.0, key=key)

    def logits_of(model, state, images):
        run = jax.vmap(
            lambda x, state: model(x, state, key=None),
            axis_name="batch",
            in_axes=(0, None),
            out_axes=(0, None),
        )
        return run(images, state)

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, state, batch):
        logits, state = logits_of(model, state, batch["image"])
        return cross_entropy(logits, batch), state

    losses = []
    for batch in batches:
        (value, state), grads = loss(model, state, batch)
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -RATE * g, grads))
        losses.append(value)
    logits, _ = logits_of(eqx.nn.inference_mode(model), state, last["image"])
    kept = jax.tree.leaves(state)
    test = cross_entropy(logits, last)
    return losses, test, eqx.filter(model, eqx.is_inexact_array), ([], kept)


LOOPS = {"nnx": loop_of_nnx, "linen": loop_of_linen, "equinox": loop_of_equinox}


@pytest.mark.parametrize("library", LOOPS)
@pytest.mark.slow
def test_training_and_evaluation_are_those_of_the_library(library, key):
    learner = mx.l2l(lambda rate: optax.sgd(rate), ADAPTED[library](0.0))
    loop = mx.inner(learner, TASKS, STEPS)
    curves = mx.evaluate(loop, key, RATE, IMAGES, num_tasks=1)

    _, k_init, k_episode = jax.random.split(jax.random.split(key, 1)[0], 3)
    data_keys = [
        jax.random.split(jax.random.fold_in(k_episode, t))[0]
        for t in (*range(STEPS), 2**31 - 1)
    ]
    *batches, last = (TASKS.train(k, IMAGES, ()) for k in data_keys)
    last = TASKS.test(data_keys[-1], IMAGES, ())
    theirs = jax.jit(LOOPS[library])(k_init, batches[:STEPS], last)
    losses, test, params, state = theirs

    np.testing.assert_allclose(curves.loss[0], losses, rtol=1e-4)
    np.testing.assert_allclose(curves.test_loss[0], test, rtol=1e-4)
    got = jax.tree.map(lambda x: x[0], curves.state.learner)
    for ours, wanted in ((got.params, params), (got.model_state, state)):
        chex.assert_trees_all_close(ours, wanted, rtol=1e-3, atol=1e-5)
    assert losses[0] != losses[-1]


@pytest.mark.parametrize("library", LOOPS)
@pytest.mark.slow
def test_dropout_follows_the_key_in_training_alone(library, key):
    problem = ADAPTED[library](0.5)
    params, state = problem.init(key, ())
    batch = TASKS.train(key, IMAGES, ())

    @jax.jit
    @jax.vmap
    def run(key):
        loss, (_, new) = problem.loss(key, params, state, batch)
        tested, _ = problem.test(key, params, state, batch)
        return loss, tested, new, problem.predict(key, params, state, batch["image"])

    keys = jax.random.split(key, 3)
    losses, tested, states, predicted = run(keys[np.array([0, 0, 1, 2])])
    assert losses[0] == losses[1]
    assert len(np.unique(losses)) == 3
    assert len(np.unique(tested)) == 1
    assert all((x == x[:1]).all() for x in jax.tree.leaves((states, predicted)))


@pytest.mark.parametrize("library", LOOPS)
@pytest.mark.slow
def test_learned_parameters_go_back_to_the_library(library, key):
    """Where they predict as the problem does, in evaluation mode."""
    problem = ADAPTED[library](0.5)
    params, state = jax.jit(problem.init)(key, ())
    params = jax.tree.map(lambda x: 1.1 * x, params)
    images = TASKS.test(key, IMAGES, ())["image"]
    if library == "nnx":
        model = NNXNet(0.5, nnx.Rngs(key))
        nnx.update(model, params)
        model.eval()
        logits = model(images)
    elif library == "linen":
        variables = {"params": params, **state}
        logits = LinenNet(0.5).apply(variables, images, training=False)
    else:
        model, theirs = eqx.nn.make_with_state(EquinoxNet)(0.5, key=key)
        model = eqx.nn.inference_mode(eqx.combine(params, model))
        logits = jax.vmap(lambda x: model(x, theirs, key=None)[0])(images)
    got = problem.predict(key, params, state, images)
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_model_without_state_key_or_mode(key):
    """Functions among its parts included, of which each call makes others."""

    def make(key):
        return eqx.nn.Sequential(
            [eqx.nn.Lambda(lambda x: x.ravel()), eqx.nn.Linear(4, 1, key=key)]
        )

    problem = mx.problems.equinox(make, mx.problems.squared_error, inputs="x")
    batch = {"x": jnp.ones((6, 2, 2)), "y": jnp.zeros((6, 1))}
    params, state = problem.init(key, ())
    again, _ = problem.init(jax.random.key(1), ())
    both = optax.tree.add(params, again)
    loss, _ = problem.test(key, both, state, batch)
    rows = both.layers[1].weight.sum() + both.layers[1].bias
    np.testing.assert_allclose(loss, rows**2, rtol=1e-5)

    module = linen.Dense(1)
    problem = mx.problems.linen(module, (4,), mx.problems.squared_error, inputs="x")
    params, state = problem.init(key, ())
    assert not state
    loss, _ = problem.test(key, params, state, {"x": jnp.ones((6, 4)), "y": batch["y"]})
    np.testing.assert_allclose(loss, params["kernel"].sum() ** 2, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@pytest.mark.slow
def test_what_a_model_shows_of_itself_is_no_state(key):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, images):
            x = images.reshape(len(images), -1)
            self.sow(nnx.Intermediate, "flat", x)
            return self.linear(x)

    problem = mx.problems.nnx(Net)
    params, state = problem.init(key, ())
    batch = TASKS.train(key, IMAGES, ())
    _, (_, new) = problem.loss(key, params, state, batch)
    assert new == state == {}


@pytest.mark.parametrize("library", LOOPS)
def test_a_library_that_is_not_there(library, monkeypatch):
    full = {"nnx": "flax.nnx", "linen": "flax.linen", "equinox": "equinox"}[library]
    monkeypatch.setitem(sys.modules, full, None)
    package = full.partition(".")[0]
    message = f"metajax.problems.{library} needs {package}, which is not installed"
    with pytest.raises(ImportError, match=re.escape(message)):
        ADAPTED[library](0.0)


def test_a_class_in_the_place_of_a_module():
    with pytest.raises(
        TypeError, match=r"module must be a flax.linen.Module, e.g. Net"
    ):
        mx.problems.linen(LinenNet, (2, 2, 1))


class LinenOfMode(linen.Module):
    def __call__(self, images, mode, *, training):
        return images


class NNXOfMode(nnx.Module):
    def __call__(self, images, mode):
        return images


class EquinoxOfMode(eqx.Module):
    def __call__(self, image, mode, *, key):
        return image


MODES = {
    "linen": lambda: mx.problems.linen(LinenOfMode(), (2,)),
    "nnx": lambda: mx.problems.nnx(lambda rngs: NNXOfMode()),
    "equinox": lambda: mx.problems.equinox(lambda key: EquinoxOfMode()),
}


@pytest.mark.parametrize("library", MODES)
def test_a_model_that_must_be_told_what_nobody_knows(library):
    with pytest.raises(TypeError, match=r"OfMode.__call__ .*got mode; give it a"):
        MODES[library]()
