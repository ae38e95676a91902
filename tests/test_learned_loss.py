"""A loss of the inner loop with meta-parameters: against the plain learner, against differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import IMAGES, MINIBATCHES, MLP, System, normalised

import metajax as mx
from metajax.implicit import cg, newton

TASKS = mx.tasks.minibatches(5, test_size=7)
LOGISTIC = mx.problems.logistic(4, 3, penalty=0.1)


MAKERS = {
    "maml": lambda problem: mx.maml(problem, 0.5),
    "fomaml": lambda problem: mx.fomaml(problem, 0.5),
    "l2l": lambda problem: mx.l2l(
        mx.optim.lstm(hidden=(3,)), problem, second_order=True
    ),
    "imaml": lambda problem: mx.imaml(problem, newton(3, cg(15)), cg(15), 0.7),
}


def penalised(problem):
    """An objective with a penalty of strength ``exp(log_strength)``."""

    def objective(log_strength, key, params, model_state, batch):
        loss, _ = problem.loss(key, params, model_state, batch)
        return loss + jnp.exp(log_strength) * optax.tree.norm(params, squared=True)

    return objective


def itself(problem):
    def objective(own, key, params, model_state, batch):
        return problem.loss(key, params, model_state, batch)[0]

    return objective


def learned(name, objective, problem=LOGISTIC):
    make = MAKERS[name]
    return mx.learned_loss(
        make, problem, objective(problem), lambda key: jnp.full((), -2.0)
    )


LEARNERS = {
    "learned_loss": System(learned("maml", penalised, MLP), MINIBATCHES, IMAGES)
}

CASES = [
    ("maml", "heldout", 3),
    ("maml", "online", 3),
    ("l2l", "online", 3),
    ("l2l", "heldout", 3),
    ("imaml", "heldout", 1),
]


def estimated(learner, meta_params, meta_loss, steps):
    """A function of the meta-parameters: the estimate over two tasks."""
    estimator = mx.bptt(mx.inner(learner, TASKS, steps, meta_loss), 2)
    state = estimator.init(jax.random.key(1), meta_params, IMAGES)
    return jax.jit(lambda m: estimator.estimate(jax.random.key(2), m, state, IMAGES)[0])


def start(learner):
    """Meta-parameters that all matter: noise upon where training begins."""
    meta_params = jax.tree.map(
        lambda x: x.astype(float), learner.meta(jax.random.key(0))
    )
    noise = optax.tree.random_like(jax.random.key(4), meta_params)
    return optax.tree.add_scale(meta_params, 0.3, noise)


@pytest.mark.parametrize(("name", "meta_loss", "steps"), CASES)
@pytest.mark.slow
def test_the_loss_of_the_problem_as_objective_changes_nothing(
    x64, name, meta_loss, steps
):
    learner = learned(name, itself)
    meta_params = start(learner)
    got = estimated(learner, meta_params, meta_loss, steps)(meta_params)
    plain = MAKERS[name](LOGISTIC)
    alone = meta_params["learner"]
    want = estimated(plain, alone, meta_loss, steps)(alone)

    chex.assert_trees_all_close(
        got.updates["learner"], want.updates, rtol=1e-9, atol=1e-13
    )
    assert got.updates["objective"] == 0
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-12)
    metrics = dict(got.metrics)
    objective = metrics.pop("objective")
    chex.assert_trees_all_close(metrics, want.metrics, rtol=1e-9, atol=1e-12)
    if meta_loss == "online":
        np.testing.assert_allclose(objective, got.loss, rtol=1e-12)


@pytest.mark.parametrize(("name", "meta_loss", "steps"), CASES)
@pytest.mark.slow
def test_the_meta_gradient_of_a_learned_penalty_equals_finite_differences(
    x64, name, meta_loss, steps
):
    learner = learned(name, penalised)
    meta_params = start(learner)
    estimate = estimated(learner, meta_params, meta_loss, steps)
    got = estimate(meta_params).updates

    def slope(direction):
        above = optax.tree.add_scale(meta_params, 1e-5, direction)
        below = optax.tree.add_scale(meta_params, -1e-5, direction)
        return (estimate(above).loss - estimate(below).loss) / 2e-5

    nothing = jax.tree.map(jnp.zeros_like, meta_params)
    strength = nothing | {"objective": jnp.ones(())}
    assert abs(got["objective"]) > 1e-4
    np.testing.assert_allclose(got["objective"], slope(strength), rtol=1e-6)
    direction = optax.tree.random_like(jax.random.key(5), meta_params)
    np.testing.assert_allclose(
        optax.tree.vdot(got, direction), slope(direction), rtol=1e-6
    )


@pytest.mark.slow
def test_a_learner_of_first_order_gives_the_objective_no_gradient(x64):
    """As the documentation says: the gradients of the inner loss are constants."""
    learner = learned("fomaml", penalised)
    meta_params = start(learner)
    updates = estimated(learner, meta_params, "heldout", 2)(meta_params).updates
    assert updates["objective"] == 0
    assert optax.tree.norm(updates["learner"]) > 0


@pytest.mark.slow
def test_the_steps_are_those_on_the_objective_and_the_losses_those_of_the_problem(
    x64, key
):
    """By hand: one step on the penalised loss, and what is told of it."""
    learner = learned("maml", penalised)
    meta_params = start(learner)
    params = meta_params["learner"]
    batch = TASKS.train(key, IMAGES, ())
    state = learner.init(key, meta_params, ())
    new, loss, metrics = learner.step(key, meta_params, state, batch)

    (plain, (told, _)), grads = jax.value_and_grad(LOGISTIC.loss, 1, True)(
        key, params, (), batch
    )
    strength = np.exp(meta_params["objective"])
    want = jax.tree.map(lambda p, g: p - 0.5 * (g + 2 * strength * p), params, grads)
    chex.assert_trees_all_close(new.params, want, rtol=1e-10)
    np.testing.assert_allclose(loss, plain, rtol=1e-12)
    squares = sum(float((x**2).sum()) for x in jax.tree.leaves(params))
    np.testing.assert_allclose(
        metrics["objective"], plain + strength * squares, rtol=1e-10
    )
    assert metrics["accuracy"] == told["accuracy"]

    tested = learner.test(key, meta_params, new, batch)
    chex.assert_trees_all_equal(tested, LOGISTIC.test(key, new.params, (), batch))


@pytest.mark.slow
def test_a_model_state_moves_on_once(key):
    """The objective and the loss both look at the model; the state is that after one of them."""
    problem = normalised(with_dropout=False)
    learner = learned("maml", penalised, problem)
    meta_params = learner.meta(key)
    batch = TASKS.train(key, IMAGES, ())
    state = learner.init(key, meta_params, ())
    new, _, _ = learner.step(key, meta_params, state, batch)
    want = 0.1 * batch["image"].reshape(5, -1).mean(0)
    np.testing.assert_allclose(new.model_state["mean"], want, rtol=1e-5)


def called_objective():
    problem = mx.problems.stateless(
        lambda key, task: jnp.zeros(2),
        lambda key, params, batch: (jnp.sum(params**2), {"objective": jnp.zeros(())}),
    )
    return learned("maml", penalised, problem)


def stepped(learner):
    key = jax.random.key(0)
    meta_params = learner.meta(key)
    return learner.step(key, meta_params, learner.init(key, meta_params, ()), ())


def each_example(problem):
    return lambda own, key, params, model_state, batch: jnp.zeros(3)


BAD = {
    "a learner for what makes one": (
        lambda: mx.learned_loss(
            mx.maml(MLP, 0.1), MLP, penalised(MLP), lambda key: 0.0
        ),
        TypeError,
        "make must be a function",
    ),
    "no learner made": (
        lambda: mx.learned_loss(
            lambda problem: problem, MLP, penalised(MLP), lambda key: 0.0
        ),
        TypeError,
        r"make\(problem\) must be a metajax.Learner",
    ),
    "a network for a problem": (
        lambda: mx.learned_loss(
            MAKERS["maml"], lambda x: x, penalised(MLP), lambda key: 0.0
        ),
        TypeError,
        "problem must be a metajax.Problem",
    ),
    "parameters for what makes them": (
        lambda: mx.learned_loss(MAKERS["maml"], MLP, penalised(MLP), jnp.zeros(2)),
        TypeError,
        "meta must be a function",
    ),
    "a value for each example": (
        lambda: stepped(learned("maml", each_example)),
        ValueError,
        "what objective returned must be a floating-point scalar",
    ),
    "a metric with the name of its own": (
        lambda: stepped(called_objective()),
        ValueError,
        "the metric 'objective' has the name of one that learned_loss reports itself",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
