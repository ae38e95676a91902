"""Under the modes that find mistakes: broadcasting said aloud, no NaN, no key used twice.

The contract (``test_contract.py``) runs all learners and estimators so; here are the rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import IMAGES, MINIBATCHES, MLP, estimators, learners

import metajax as mx

SYSTEMS, MAKERS = learners(), estimators()
QUADRATIC = SYSTEMS["sgd_rate"]
DIGITS = {
    "image": np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1)).astype(np.uint8),
    "label": np.arange(6, dtype=np.int32) % 3,
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_evaluation_can_be_traced(name, key, strict):
    """Of all learners: steps, test and predictions."""
    system = SYSTEMS[name]
    meta_params = jax.eval_shape(system.meta_params)

    @jax.jit
    def run(key, meta_params):
        curves = mx.evaluate(system.inner(), key, meta_params, system.data, num_tasks=2)
        return curves.loss

    assert jax.eval_shape(run, key, meta_params).shape == (2, 4)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.slow
def test_estimators_begin_and_go_on(name, key, strict):
    inner, meta_params = QUADRATIC.inner(), QUADRATIC.meta_params()
    estimator = MAKERS[name](inner, meta_params)
    state = estimator.init(key, meta_params, ())

    @jax.jit
    def both(key, state):
        k_first, k_second = jax.random.split(key)
        _, state = estimator.estimate(k_first, meta_params, state, ())
        return estimator.estimate(k_second, meta_params, state, ())[0].loss

    assert jax.eval_shape(both, key, state).shape == ()


@pytest.mark.slow
def test_measures_and_comparisons(key, strict):
    inner, rate = QUADRATIC.inner(), QUADRATIC.meta_params()
    k_mean, k_diagnose, k_compare = jax.random.split(key, 3)
    estimator = mx.bptt(inner, 2, truncation=2)
    mean = mx.mean_gradient(estimator, k_mean, rate, samples=2, windows=2)
    found = mx.diagnose(
        estimator, k_diagnose, rate, reference=mean, inner=inner, samples=2
    )
    assert found.norm > 0
    result = mx.compare(
        {"searched": optax.sgd, "fixed": optax.sgd(0.01)},
        mx.problems.quadratic(),
        QUADRATIC.tasks,
        k_compare,
        steps=2,
        num_tasks=2,
        search=mx.RateSearch([0.01]),
    )
    assert np.isfinite(result.final["searched"]).all()


def test_a_run_with_validations(key, strict):
    inner = QUADRATIC.inner()
    k_run, k_validation = jax.random.split(key)

    def loss(key, rate, data):
        return mx.evaluate(inner, key, rate, data, num_tasks=2).loss.mean()

    trainer = mx.trainer(mx.pes(inner, 2, 1e-3, 2), optax.sgd(1e-3), chunk=2)
    state = trainer.init(k_run, QUADRATIC.meta_params())
    validate = mx.validation(loss, k_validation, every=2)
    result = mx.fit(trainer, state, num_steps=4, validate=validate, progress=None)
    assert np.isfinite(result.validation["loss"]).all()


# What is drawn under which tasks, by what has layers of its own.
PROBLEMS = {
    "conv4": (
        mx.problems.classifier(*mx.nets.conv4(3, (16, 16, 1), 2)),
        MINIBATCHES,
        DIGITS,
    ),
    "dense4": (
        mx.problems.classifier(*mx.nets.dense4(3, (16, 16, 1), (4,))),
        MINIBATCHES,
        DIGITS,
    ),
    "resnet12": (
        mx.problems.classifier(*mx.nets.resnet12(3, (16, 16, 1), (2, 2))),
        MINIBATCHES,
        DIGITS,
    ),
    "convnet": (mx.problems.convnet(3, (16, 16, 1), (2,), 4), MINIBATCHES, DIGITS),
    "autoencoder": (mx.problems.autoencoder((4, 2)), MINIBATCHES, IMAGES),
    "logistic": (mx.problems.logistic(4, 3, 0.1), MINIBATCHES, IMAGES),
    "random_mlp": (*mx.problems.random_mlp(MINIBATCHES, 4, 3), IMAGES),
    "random_scaling": (*mx.problems.random_scaling(MLP, MINIBATCHES), IMAGES),
    "character_gru": (
        mx.problems.character_gru(5, 4),
        mx.tasks.text(5, length=6),
        {"text": np.arange(99) % 5},
    ),
    "regressor": (
        mx.problems.regressor(lambda key: jnp.ones((3, 1)), lambda w, x: x @ w),
        mx.tasks.linear_regressions(3, 4, 4, condition=2.0, noise=0.1),
        (),
    ),
    "neural_art": (
        *mx.problems.neural_art(
            mx.problems.vgg(
                {"conv1_1": {"w": jnp.ones((3, 3, 3, 2)), "b": jnp.ones(2)}}
            ),
            ["conv1_1"],
            ["conv1_1"],
        ),
        {"content": jnp.ones((2, 6, 6, 3)), "style": jnp.ones((1, 6, 6, 3))},
    ),
}
for name, change in {
    "standardize": lambda tasks: mx.tasks.standardize(tasks, *mx.data.columns(IMAGES)),
    "by channel": lambda tasks: mx.tasks.standardize(tasks, np.ones(1), np.ones(1)),
    "project": lambda tasks: mx.tasks.project(tasks, 4),
    "permute": lambda tasks: mx.tasks.permute_pixels(mx.tasks.permute_labels(tasks, 3)),
    "unit_spread": lambda tasks: mx.tasks.unit_spread(mx.tasks.flatten(tasks)),
}.items():
    PROBLEMS[name] = (MLP, change(MINIBATCHES), IMAGES)


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_and_tasks(name, key, strict):
    problem, tasks, data = PROBLEMS[name]
    loop = mx.inner(mx.l2l(lambda rate: optax.sgd(rate), problem), tasks, 2)

    @jax.jit
    def run(key):
        return mx.evaluate(loop, key, 0.1, data).loss

    assert jax.eval_shape(run, key).shape == (32, 2)


OPTIMIZERS = {
    "lstm": mx.optim.lstm(hidden=(3,), averaged=1),
    "ntm_bfgs": mx.optim.ntm_bfgs(hidden=(3,)),
    "ntm_l_bfgs": mx.optim.ntm_bfgs(hidden=(3,), memory=2),
    "rnnprop": mx.optim.rnnprop(hidden=(3,)),
    "mlp": mx.optim.mlp(hidden=(3,)),
    "adafactor_mlp": mx.optim.adafactor_mlp(),
    "celo": mx.optim.celo(2),
    "celo2": mx.optim.celo2(),
    "leafwise": mx.optim.leafwise(mx.optim.mlp(hidden=(3,))),
    "nadam": mx.optim.nadam(),
    "piecewise_schedule": mx.optim.piecewise_schedule(optax.sgd(1.0)),
    "mlp_schedule": mx.optim.mlp_schedule(optax.sgd(1.0)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_learned_optimizers(name, key, strict):
    """On weights and biases, whose ranks differ."""
    k_meta, k_run = jax.random.split(key)
    learner = mx.l2l(OPTIMIZERS[name], MLP)
    loop = mx.inner(learner, MINIBATCHES, 2)

    @jax.jit
    def run(k_meta, k_run):
        return mx.evaluate(loop, k_run, learner.meta(k_meta), IMAGES).loss

    assert jax.eval_shape(run, k_meta, k_run).shape == (32, 2)


SOLVERS = {
    "cg": (mx.implicit.newton(2, mx.implicit.cg(2)), mx.implicit.cg(2)),
    "direct": (mx.implicit.descend(optax.lbfgs(), 2), mx.implicit.direct()),
    "neumann": (mx.implicit.descend(optax.sgd(0.1), 2), mx.implicit.neumann(2, 0.1)),
    "lanczos": (
        mx.implicit.newton(2, mx.implicit.lanczos(2, 0.1)),
        mx.implicit.lanczos(2, 0.1),
    ),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_implicit_gradients(name, strict):
    objective = mx.implicit.proximal(
        lambda phi: jnp.sum(jnp.cosh(phi["a"])) + phi["b"] ** 2
    )
    solve = mx.implicit.argmin(objective, *SOLVERS[name])
    theta = {"a": jnp.ones(3), "b": jnp.ones(())}

    @jax.jit
    def slope(theta):
        return jax.grad(lambda theta: solve(theta, theta, 2.0)[0]["a"].sum())(theta)

    assert jax.eval_shape(slope, theta)["a"].shape == (3,)
