"""MAML and its family against loops over NumPy arrays, differentiated by finite differences."""

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from masks import learner_ignores

import metajax as mx

STEPS, RATE, NUM_TASKS = 3, 0.3, 2


def net_loss(key, params, batch):
    error = jnp.tanh(batch["x"] @ params["body"]) @ params["head"] - batch["y"]
    return 0.5 * jnp.mean(error**2), {"worst": jnp.abs(error).max()}


PARAMS = {
    "body": np.random.default_rng(0).normal(size=(3, 2)),
    "head": np.array([1.0, -0.7]),
}
PROBLEM = mx.problems.stateless(
    lambda key, task: jax.tree.map(jnp.asarray, PARAMS), net_loss
)


def sample(key, data):
    k_x, k_y = jax.random.split(key)
    return {"x": jax.random.normal(k_x, (2, 5, 3)), "y": jax.random.normal(k_y, (2, 5))}


def part(i):
    return lambda key, data, task: jax.tree.map(lambda x: x[i], task)


TASKS = mx.Tasks(sample, part(0), part(1))
RATES = jax.tree.map(
    lambda x: RATE * (1 + 0.1 * np.arange(x.size).reshape(x.shape)), PARAMS
)
STEP_RATES = {"body": np.array([0.3, 0.2, 0.4]), "head": np.array([0.1, 0.5, 0.2])}
WEIGHTS = [0.2, 0.3, 0.5]


def value_and_grads(params, x, y):
    """The network by hand."""
    h = np.tanh(x @ params["body"])
    error = h @ params["head"] - y
    d = error[:, None] * params["head"] * (1 - h**2) / len(y)
    return 0.5 * np.mean(error**2), {"body": x.T @ d, "head": h.T @ error / len(y)}


def trajectory(params, task, rate):
    """Gradient descent with the rates ``rate(step, name)``."""
    path = [params]
    for t in range(STEPS):
        _, grads = value_and_grads(path[-1], task["x"][0], task["y"][0])
        path.append(
            {name: p - rate(t, name) * grads[name] for name, p in path[-1].items()}
        )
    return path


def query(params, task):
    return value_and_grads(params, task["x"][1], task["y"][1])


def is_head(name):
    return name == "head"


def after(rate, params=lambda m: m):
    """The query loss after the last step, with the rates ``rate(meta_params, step, name)``."""
    return lambda m, task: query(
        trajectory(params(m), task, lambda *at: rate(m, *at))[-1], task
    )[0]


def on_the_way(m, task):
    path = trajectory(m["params"], task, lambda t, name: m["rates"][name][t])
    return sum(
        w * query(params, task)[0] for w, params in zip(WEIGHTS, path[1:], strict=True)
    )


# For each second-order member: the learner, its meta-parameters, and its meta-loss on a task by
# hand.
EXACT = {
    "maml": (mx.maml(PROBLEM, RATE), PARAMS, after(lambda m, t, name: RATE)),
    "anil": (
        mx.anil(PROBLEM, RATE, is_head),
        PARAMS,
        after(lambda m, t, name: RATE * is_head(name)),
    ),
    "boil": (
        mx.boil(PROBLEM, RATE, is_head),
        PARAMS,
        after(lambda m, t, name: RATE * (not is_head(name))),
    ),
    "meta_sgd": (
        mx.meta_sgd(PROBLEM, RATE),
        {"params": PARAMS, "rates": RATES},
        after(lambda m, t, name: m["rates"][name], lambda m: m["params"]),
    ),
    "maml_plus_plus": (
        mx.maml_plus_plus(PROBLEM, WEIGHTS, RATE),
        {"params": PARAMS, "rates": STEP_RATES},
        on_the_way,
    ),
}


def estimate(
    learner,
    meta_params,
    estimator=mx.bptt,
    tasks=TASKS,
    meta_loss="heldout",
    steps=STEPS,
):
    """The estimate over two tasks, the final states, and the tasks."""
    run = estimator(mx.inner(learner, tasks, steps, meta_loss), NUM_TASKS)
    meta_params = jax.tree.map(jnp.asarray, meta_params)
    begin, key = jax.random.split(jax.random.key(0))
    result, state = jax.jit(lambda m: run.estimate(key, m, run.init(begin, m, ()), ()))(
        meta_params
    )
    return (
        result,
        state,
        [
            jax.tree.map(lambda x, i=i: np.asarray(x[i]), state.task)
            for i in range(NUM_TASKS)
        ],
    )


@functools.cache
def of_maml(second_order=True):
    return estimate((mx.maml if second_order else mx.fomaml)(PROBLEM, RATE), PARAMS)


def mean(trees):
    return jax.tree.map(lambda *x: np.mean(x, 0), *trees)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [*((name, mx.bptt) for name in EXACT), ("maml_plus_plus", mx.forward)],
)
def test_the_meta_gradient_is_that_of_a_loop_by_hand(x64, name, estimator):
    learner, meta_params, by_hand = EXACT[name]
    if name == "maml_plus_plus":
        result, _, tasks = estimate(
            learner, meta_params, estimator, mx.tasks.with_query(TASKS), "online"
        )
    else:
        result, _, tasks = estimate(learner, meta_params, estimator)
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, meta_params))

    def value(x):
        start = jax.tree.map(np.asarray, unravel(x))
        return np.mean([by_hand(start, task) for task in tasks])

    np.testing.assert_allclose(result.loss, value(flat), rtol=1e-12)
    want = [
        (value(flat + h) - value(flat - h)) / 2e-5 for h in 1e-5 * np.eye(flat.size)
    ]
    np.testing.assert_allclose(
        ravel_pytree(result.updates)[0], want, rtol=1e-6, atol=1e-9
    )


def test_first_order_maml_by_definition(x64):
    """The mean gradient of the query losses, at the adapted parameters."""
    result, _, tasks = of_maml(second_order=False)
    want = [
        query(trajectory(PARAMS, task, lambda t, name: RATE)[-1], task)[1]
        for task in tasks
    ]
    chex.assert_trees_all_close(result.updates, mean(want), rtol=1e-10)
    exact, _, _ = of_maml()
    assert abs(exact.updates["body"] - result.updates["body"]).max() > 1e-3, (
        "the second order matters here"
    )


@pytest.mark.parametrize("estimator", [mx.bptt, mx.forward])
def test_reptile_by_definition(x64, estimator):
    """``theta - phi``, with gradient descent inside; and its loss is the query loss."""
    result, _, tasks = estimate(mx.reptile(PROBLEM, optax.sgd(RATE)), PARAMS, estimator)
    ends = [trajectory(PARAMS, task, lambda t, name: RATE)[-1] for task in tasks]
    chex.assert_trees_all_close(
        result.updates, jax.tree.map(np.subtract, PARAMS, mean(ends)), rtol=1e-12
    )
    np.testing.assert_allclose(
        result.loss,
        np.mean([query(*x)[0] for x in zip(ends, tasks, strict=True)]),
        rtol=1e-12,
    )


def test_reptile_is_an_interpolation_towards_what_was_adapted(x64):
    """Over Adam and as training: ``theta + epsilon (mean phi - theta)``."""
    inner = mx.inner(
        mx.reptile(PROBLEM, optax.adam(0.1, b1=0.0)), TASKS, STEPS, "heldout"
    )
    trainer = mx.trainer(mx.bptt(inner, NUM_TASKS), optax.sgd(0.25))
    new, _ = jax.jit(trainer.step)(trainer.init(jax.random.key(0), PARAMS))
    phi = jax.tree.map(lambda x: x.mean(0), new.estimator.learner.params)
    want = jax.tree.map(lambda theta, phi: theta + 0.25 * (phi - theta), PARAMS, phi)
    chex.assert_trees_all_close(new.meta_params, want, rtol=1e-12)


def test_the_loss_of_reptile_is_not_lost_beside_the_distance():
    problem = mx.problems.stateless(
        lambda key, task: jnp.float32(0.0),
        lambda key, params, batch: (1e-5 * jnp.cos(params), {}),
    )
    learner = mx.reptile(problem, optax.sgd(0.1))
    state = learner.init(jax.random.key(0), jnp.float32(0.0), ())
    state = state._replace(params=jnp.float32(300.0))

    def test(*args):
        return learner.test(*args)[0]

    for f in (test, jax.jit(test)):
        loss, grad = jax.value_and_grad(f, 1)(
            jax.random.key(0), jnp.float32(0.0), state, ()
        )
        np.testing.assert_allclose(loss, 1e-5 * np.cos(300), rtol=1e-5)
        assert grad == -300


def test_reptile_online_is_the_mean_over_the_steps(x64):
    result, _, tasks = estimate(
        mx.reptile(PROBLEM, optax.sgd(RATE)), PARAMS, meta_loss="online"
    )
    path = [
        phi
        for task in tasks
        for phi in trajectory(PARAMS, task, lambda t, name: RATE)[1:]
    ]
    chex.assert_trees_all_close(
        result.updates, jax.tree.map(np.subtract, PARAMS, mean(path)), rtol=1e-12
    )


@pytest.mark.slow
def test_fine_tuning_adapts_like_optax(x64):
    _, state, tasks = estimate(mx.finetune(PROBLEM, optax.adam(0.1)), PARAMS)
    tx, params = optax.adam(0.1), PARAMS
    opt_state = tx.init(params)
    for _ in range(STEPS):
        updates, opt_state = tx.update(
            value_and_grads(params, tasks[0]["x"][0], tasks[0]["y"][0])[1], opt_state
        )
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[0], state.learner.params), params, rtol=1e-10
    )


@pytest.mark.slow
def test_limits(x64):
    """Members of the family that coincide, and the rate 0, which is joint training."""
    maml, _, tasks = of_maml()
    meta_sgd = mx.meta_sgd(PROBLEM, RATE)
    same_rates, _, _ = estimate(meta_sgd, meta_sgd.meta(jax.random.key(0)))
    chex.assert_trees_all_close(same_rates.updates["params"], maml.updates, rtol=1e-10)
    judged_each_step = (mx.bptt, mx.tasks.with_query(TASKS), "online")
    at_the_end = mx.maml_plus_plus(PROBLEM, mx.step_weights(STEPS, 1.0), RATE)
    meta_params = at_the_end.meta(jax.random.key(0))
    last_only, _, _ = estimate(at_the_end, meta_params, *judged_each_step)
    chex.assert_trees_all_close(last_only.updates["params"], maml.updates, rtol=1e-10)
    joint, _, _ = estimate(mx.maml(PROBLEM, 0.0), PARAMS)
    chex.assert_trees_all_close(
        joint.updates, mean([query(PARAMS, task)[1] for task in tasks]), rtol=1e-10
    )
    # The first phase of derivative-order annealing is first-order MAML.
    first_order = mx.maml_plus_plus(PROBLEM, [0, 0, 1], RATE, second_order=False)
    first, _, _ = estimate(first_order, meta_params, *judged_each_step)
    fomaml, _, _ = of_maml(second_order=False)
    chex.assert_trees_all_close(first.updates["params"], fomaml.updates, rtol=1e-10)


def test_what_does_not_adapt_is_not_carried():
    learner = mx.anil(PROBLEM, RATE, is_head)
    assert learner.init(jax.random.key(0), PARAMS, ()).params["body"] is None


def test_maml_over_another_optimizer_with_a_learned_rate(x64):
    learner = mx.adapt(
        PROBLEM,
        lambda m: optax.adam(jnp.exp(m["log_rate"])),
        start=lambda m: m["params"],
    )
    meta_params = {"params": PARAMS, "log_rate": np.log(0.1)}
    inner = mx.inner(learner, TASKS, STEPS, "heldout")

    def meta_loss(m):
        start = inner.init(jax.random.key(0), m, ())
        return mx.unroll(inner, m, start, (), STEPS)[1]

    loss_and_grads = jax.jit(jax.value_and_grad(meta_loss))
    above, below = (
        loss_and_grads(meta_params | {"log_rate": np.log(0.1) + h})[0]
        for h in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(
        loss_and_grads(meta_params)[1]["log_rate"], (above - below) / 2e-5, rtol=1e-6
    )


def weighing_their_steps():
    """Learners with a weight for each of three steps."""
    return (
        mx.maml_plus_plus(PROBLEM, WEIGHTS, RATE),
        mx.multi_step(mx.maml(PROBLEM, RATE), WEIGHTS),
        mx.learned_loss(
            lambda problem: mx.maml_plus_plus(problem, WEIGHTS, RATE),
            PROBLEM,
            lambda own, *args: PROBLEM.loss(*args)[0],
            meta=lambda key: (),
        ),
    )


@pytest.mark.parametrize("horizon", [1, 2, 4, (1, 3)])
def test_a_learner_made_for_so_many_steps_is_joined_for_so_many(horizon):
    your_own = replace(mx.maml(PROBLEM, RATE), steps=3)
    for learner in (*weighing_their_steps(), your_own):
        mx.inner(learner, mx.tasks.with_query(TASKS), 3)
        with pytest.raises(
            ValueError, match="horizon must be 3, the steps that learner"
        ):
            mx.inner(learner, mx.tasks.with_query(TASKS), horizon)


def test_a_learner_that_weighs_its_steps_is_judged_by_all_of_them():
    for learner in weighing_their_steps():
        with pytest.raises(ValueError, match=r"(?s)'online'.*step_weights\(steps, 1.0"):
            mx.inner(learner, mx.tasks.with_query(TASKS), STEPS, "heldout")


def test_windows_add_up_to_the_weighted_sum(x64):
    learner = mx.maml_plus_plus(PROBLEM, WEIGHTS, RATE)
    loop = mx.inner(learner, mx.tasks.with_query(TASKS), STEPS)
    meta_params = {"params": PARAMS, "rates": STEP_RATES}
    estimator = mx.bptt(loop, NUM_TASKS, truncation=1)
    run = jax.jit(estimator.estimate)
    state = estimator.init(jax.random.key(0), meta_params, ())
    losses = []
    for key in jax.random.split(jax.random.key(1), STEPS):
        found, state = run(key, meta_params, state, ())
        losses.append(found.loss)
    tasks = [
        jax.tree.map(lambda x, i=i: np.asarray(x[i]), state.task)
        for i in range(NUM_TASKS)
    ]
    want = np.mean([on_the_way(meta_params, task) for task in tasks])
    np.testing.assert_allclose(np.mean(losses), want, rtol=1e-10)


def test_weights_and_rates_for_other_numbers_of_steps_do_not_go_together():
    five = mx.maml_plus_plus(PROBLEM, mx.step_weights(5, 0.0), RATE)
    with pytest.raises(ValueError, match="made for 5 steps, got 3"):
        mx.multi_step(five, WEIGHTS)
    learner = mx.maml_plus_plus(PROBLEM, WEIGHTS, RATE)
    loop = mx.inner(learner, mx.tasks.with_query(TASKS), 3)
    with pytest.raises(ValueError, match=r"rates \[3\], one for each of the weights"):
        mx.evaluate(loop, jax.random.key(0), five.meta(jax.random.key(0)), num_tasks=1)


def test_steps_beyond_those_trained_for_take_the_last_rate(x64):
    learner = mx.maml_plus_plus(PROBLEM, WEIGHTS, RATE)
    loop = mx.inner(learner, mx.tasks.with_query(TASKS), STEPS)
    curves = mx.evaluate(
        loop,
        jax.random.key(0),
        {"params": PARAMS, "rates": STEP_RATES},
        num_tasks=1,
        steps=5,
    )
    task = jax.tree.map(lambda x: np.asarray(x[0]), curves.state.task)
    params = PARAMS
    for t in range(5):
        _, grads = value_and_grads(params, task["x"][0], task["y"][0])
        params = {
            name: p - STEP_RATES[name][min(t, 2)] * grads[name]
            for name, p in params.items()
        }
    np.testing.assert_allclose(curves.test_loss[0], query(params, task)[0], rtol=1e-10)
    np.testing.assert_allclose(
        curves.loss[0, -1], 3 * WEIGHTS[-1] * query(params, task)[0], rtol=1e-10
    )


def test_metrics_on_the_test_batch(x64):
    """From `evaluate`, and among the metrics of training where the meta-loss is held out."""
    result, _, tasks = of_maml()

    def worst(params, task):
        error = np.tanh(task["x"][1] @ params["body"]) @ params["head"] - task["y"][1]
        return abs(error).max()

    ends = [trajectory(PARAMS, task, lambda t, name: RATE)[-1] for task in tasks]
    want = [worst(*x) for x in zip(ends, tasks, strict=True)]
    np.testing.assert_allclose(result.metrics["test_worst"], np.mean(want), rtol=1e-10)
    inner = mx.inner(mx.maml(PROBLEM, RATE), TASKS, STEPS)
    curves = mx.evaluate(
        inner, jax.random.split(jax.random.key(0))[1], PARAMS, num_tasks=NUM_TASKS
    )
    np.testing.assert_allclose(curves.test_metrics["worst"], want, rtol=1e-10)
    assert curves.metrics["worst"].shape == (NUM_TASKS, STEPS)


def test_a_learner_need_not_have_metrics():
    learner = mx.maml(PROBLEM, RATE)
    plain = mx.Learner(
        learner.init, learner.step, lambda *args: (learner.test(*args)[0], {})
    )
    loop = mx.inner(plain, TASKS, 1)
    assert mx.evaluate(loop, jax.random.key(0), PARAMS, num_tasks=1).test_metrics == {}


@pytest.mark.parametrize("name", ["maml", "fomaml", "meta_sgd", "anil", "finetune"])
@pytest.mark.slow
def test_what_is_masked_is_not_adapted_to(x64, name):
    """The same adapted parameters, losses and meta-gradient as without those examples."""
    mlp = mx.problems.mlp((4, 5, 3))
    learner = {
        "maml": lambda: mx.maml(mlp, 0.3),
        "fomaml": lambda: mx.fomaml(mlp, 0.3),
        "meta_sgd": lambda: mx.meta_sgd(mlp, 0.3),
        "anil": lambda: mx.anil(mlp, 0.3, lambda name: name.startswith("1/")),
        "finetune": lambda: mx.finetune(mlp, optax.adam(0.1)),
    }[name]()
    learner_ignores(learner, learner.meta(jax.random.key(3)))


def test_the_query_batch_is_not_the_support_batch():
    images = {
        "image": np.arange(100, dtype=np.float32)[:, None],
        "label": np.zeros(100, np.int32),
    }
    tasks = mx.tasks.minibatches(50, test_size=50)
    support, query = mx.tasks.with_query(tasks).train(jax.random.key(0), images, ())
    chex.assert_trees_all_equal(support, tasks.train(jax.random.key(0), images, ()))
    assert np.mean(support["image"] == query["image"]) < 0.2


MLP = mx.problems.mlp((4, 2, 3))
MLP_PARAMS, _ = MLP.init(jax.random.key(0), ())
INIT = (jax.random.key(0), MLP_PARAMS, ())
META_SGD = mx.meta_sgd(MLP, 0.1)
PLUS_PLUS = mx.maml_plus_plus(MLP, [1.0], 0.1)
BAD = {
    "maml: a network for a problem": (
        lambda: mx.maml(lambda x: x, 0.1),
        TypeError,
        "problem",
    ),
    "maml: rate negative": (lambda: mx.maml(MLP, -0.1), ValueError, "rate"),
    "maml: rate an array": (lambda: mx.maml(MLP, jnp.ones(2)), TypeError, "rate"),
    "maml: rate a bool": (lambda: mx.maml(MLP, True), TypeError, "rate"),
    "anil: head by name": (
        lambda: mx.anil(MLP, 0.1, "head"),
        TypeError,
        "head must be a function",
    ),
    "anil: head of nothing": (
        lambda: mx.anil(MLP, 0.1, lambda name: False).init(*INIT),
        ValueError,
        "head must be true for some.*0/b.*1/w",
    ),
    "boil: head of everything": (
        lambda: mx.boil(MLP, 0.1, lambda name: True).init(*INIT),
        ValueError,
        "head must be true for some",
    ),
    "adapt: nothing": (
        lambda: mx.adapt(
            MLP,
            lambda m: optax.sgd(0.1),
            adapts=lambda p: jax.tree.map(lambda x: False, p),
        ).init(*INIT),
        ValueError,
        "adapts",
    ),
    "adapt: a rate": (
        lambda: mx.adapt(MLP, lambda m: 0.1).init(*INIT),
        TypeError,
        "the function of the meta-parameters must give",
    ),
    "meta_sgd: plain parameters": (
        lambda: META_SGD.init(*INIT),
        ValueError,
        r"metajax.meta_sgd\(...\).meta",
    ),
    "meta_sgd: rates of steps": (
        lambda: META_SGD.init(INIT[0], PLUS_PLUS.meta(INIT[0]), ()),
        ValueError,
        "meta_params.'rates'.* must be like",
    ),
    "maml_plus_plus: plain parameters": (
        lambda: PLUS_PLUS.init(*INIT),
        ValueError,
        r"metajax.maml_plus_plus\(...\).meta",
    ),
    "maml_plus_plus: rates of parameters": (
        lambda: mx.evaluate(
            mx.inner(PLUS_PLUS, mx.tasks.with_query(mx.tasks.minibatches(2)), 1),
            jax.random.key(0),
            META_SGD.meta(jax.random.key(0)),
            {"image": np.ones((2, 4), np.float32), "label": np.zeros(2, int)},
        ),
        ValueError,
        r"rates \[1\], one for each of the weights, as maml_plus_plus\(...\).meta",
    ),
    "adapt: a transformation": (
        lambda: mx.adapt(MLP, optax.sgd(0.1)),
        TypeError,
        "make_tx",
    ),
    "finetune: a rate": (
        lambda: mx.finetune(MLP, 0.1),
        TypeError,
        "tx must be an optax",
    ),
    "reptile: a rate": (lambda: mx.reptile(MLP, 0.1), TypeError, "tx must be an optax"),
    "meta_sgd: rate zero": (lambda: mx.meta_sgd(MLP, 0.0), ValueError, "rate"),
    "maml_plus_plus: rate zero": (
        lambda: mx.maml_plus_plus(MLP, [1.0], 0.0),
        ValueError,
        "rate",
    ),
    "maml_plus_plus: no step": (
        lambda: mx.maml_plus_plus(MLP, [], 0.1),
        ValueError,
        "weights",
    ),
    "step_weights: progress in percent": (
        lambda: mx.step_weights(3, 50),
        ValueError,
        "progress",
    ),
    "step_weights: no step": (lambda: mx.step_weights(0, 0.5), ValueError, "steps"),
    "multi_step: a problem": (lambda: mx.multi_step(MLP, [1.0]), TypeError, "learner"),
    "multi_step: no weights": (
        lambda: mx.multi_step(mx.maml(MLP, 0.1), []),
        ValueError,
        "weights",
    ),
    "multi_step: a weight negative": (
        lambda: mx.multi_step(mx.maml(MLP, 0.1), [1.0, -1.0]),
        ValueError,
        "weights",
    ),
    "multi_step: a weight NaN": (
        lambda: mx.maml_plus_plus(MLP, [1.0, np.nan], 0.1),
        ValueError,
        "weights",
    ),
    "multi_step: the number of steps": (
        lambda: mx.maml_plus_plus(MLP, 3, 0.1),
        TypeError,
        "weights",
    ),
    "multi_step: no query batch": (
        lambda: mx.multi_step(mx.maml(MLP, 0.1), [1.0]).step(
            *(
                jax.random.key(0),
                MLP_PARAMS,
                mx.multi_step(mx.maml(MLP, 0.1), [1.0]).init(*INIT),
            ),
            {"image": jnp.ones((1, 4)), "label": jnp.zeros(1, int)},
        ),
        TypeError,
        "with_query",
    ),
    "with_query: a learner": (
        lambda: mx.tasks.with_query(mx.maml(MLP, 0.1)),
        TypeError,
        "tasks",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
