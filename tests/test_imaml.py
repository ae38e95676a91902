"""iMAML against the closed form of linear regression, as in the synthetic experiment of the
paper.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from masks import learner_ignores

import metajax as mx
from metajax.implicit import cg, descend, newton

SIZE, LAM, NUM_TASKS = 4, 0.5, 2
THETA = {"w": np.array([0.3, -1.0, 0.5]), "b": np.array(0.2)}


def squares(key, params, batch):
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return 0.5 * jnp.mean(error**2), {"worst": jnp.abs(error).max()}


PROBLEM = mx.problems.stateless(
    lambda key, task: jax.tree.map(jnp.asarray, THETA), squares
)


def sample(key, data):
    k_x, k_y = jax.random.split(key)
    return {"x": jax.random.normal(k_x, (2, 6, 3)), "y": jax.random.normal(k_y, (2, 6))}


def part(i):
    return lambda key, data, task: jax.tree.map(lambda x: x[i], task)


TASKS = mx.Tasks(sample, part(0), part(1))
EXACT = newton(1, cg(SIZE)), cg(SIZE)


def flat(params):
    return np.append(params["w"], params["b"])


def by_hand(theta, lam, task):
    """The inner solution, the query loss there, and the meta-gradients of ``theta`` and ``lam``."""
    (x, xq), (y, yq) = (np.insert(task["x"], 3, 1.0, axis=2)), task["y"]
    hessian = x.T @ x / len(y)
    phi = np.linalg.solve(hessian + lam * np.eye(SIZE), x.T @ y / len(y) + lam * theta)
    error = xq @ phi - yq
    g = np.linalg.solve(np.eye(SIZE) + hessian / lam, xq.T @ error / len(yq))
    return phi, 0.5 * np.mean(error**2), g, (x.T @ (x @ phi - y) / len(y)) @ g / lam**2


def inner(learner, tasks=TASKS):
    return mx.inner(learner, tasks, 1, "heldout")


def estimate(estimator, meta_params):
    meta_params = jax.tree.map(jnp.asarray, meta_params)
    begin, key = jax.random.split(jax.random.key(0))
    result, state = jax.jit(
        lambda m: estimator.estimate(key, m, estimator.init(begin, m, ()), ())
    )(meta_params)
    return (
        result,
        state,
        [
            jax.tree.map(lambda x, i=i: np.asarray(x[i]), state.task)
            for i in range(NUM_TASKS)
        ],
    )


@pytest.mark.parametrize("estimator", [mx.bptt, mx.forward])
@pytest.mark.slow
def test_the_meta_gradient_in_closed_form(x64, estimator):
    result, state, tasks = estimate(
        estimator(inner(mx.imaml(PROBLEM, *EXACT, LAM)), NUM_TASKS), THETA
    )
    phi, losses, grads, _ = zip(
        *(by_hand(flat(THETA), LAM, task) for task in tasks), strict=True
    )
    np.testing.assert_allclose(result.loss, np.mean(losses), rtol=1e-10)
    np.testing.assert_allclose(flat(result.updates), np.mean(grads, 0), rtol=1e-9)
    np.testing.assert_allclose(
        state.learner.params["w"], np.array(phi)[:, :3], rtol=1e-9
    )
    assert result.metrics["inner_grad_norm"] < 1e-12
    start = [
        abs(np.append(t["x"][0], np.ones((6, 1)), 1) @ flat(THETA) - t["y"][0]).max()
        for t in tasks
    ]
    np.testing.assert_allclose(result.metrics["worst"], np.mean(start), rtol=1e-9)


def test_a_learned_lam_in_closed_form(x64):
    learner = mx.imaml(
        PROBLEM, *EXACT, lambda m: jnp.exp(m["log_lam"]), start=lambda m: m["theta"]
    )
    meta_params = {"theta": THETA, "log_lam": np.log(LAM)}
    result, _, tasks = estimate(mx.bptt(inner(learner), NUM_TASKS), meta_params)
    _, _, grads, slopes = zip(
        *(by_hand(flat(THETA), LAM, task) for task in tasks), strict=True
    )
    np.testing.assert_allclose(
        flat(result.updates["theta"]), np.mean(grads, 0), rtol=1e-9
    )
    np.testing.assert_allclose(
        result.updates["log_lam"], LAM * np.mean(slopes), rtol=1e-9
    )


def is_weight(params):
    return {"w": True, "b": False}


def test_a_part_that_adapts_in_closed_form(x64):
    """The bias stays where it is, and is learned by itself and by what it does to the weights."""
    learner = mx.imaml(PROBLEM, *EXACT, LAM, adapts=is_weight)
    result, state, tasks = estimate(mx.bptt(inner(learner), NUM_TASKS), THETA)
    assert state.learner.params["b"] is None
    w_grads, b_grads = [], []
    for i, task in enumerate(tasks):
        (x, xq), (y, yq) = task["x"], task["y"]
        matrix = x.T @ x / len(y) + LAM * np.eye(3)
        side = x.T @ (y - THETA["b"]) / len(y) + LAM * THETA["w"]
        w = np.linalg.solve(matrix, side)
        np.testing.assert_allclose(state.learner.params["w"][i], w, rtol=1e-9)

        error = xq @ w + THETA["b"] - yq
        implicit = np.linalg.solve(matrix, xq.T @ error / len(yq))
        w_grads.append(LAM * implicit)
        b_grads.append(error.mean() - x.mean(0) @ implicit)
    np.testing.assert_allclose(result.updates["w"], np.mean(w_grads, 0), rtol=1e-9)
    np.testing.assert_allclose(result.updates["b"], np.mean(b_grads), rtol=1e-9)


@pytest.mark.slow
def test_a_part_that_adapts_is_diagnosed_and_predicts(x64):
    lam = {"w": 0.5, "b": 9.0}  # of what does not adapt, it has no part
    options = {"adapts": is_weight, "lam": lam}
    plain = mx.imaml(PROBLEM, *EXACT, **options)
    told = mx.imaml_diagnosed(PROBLEM, *EXACT, **options)
    one, state, _ = estimate(mx.bptt(inner(plain), 1), THETA)
    other, _, _ = estimate(mx.bptt(inner(told, mx.tasks.with_query(TASKS)), 1), THETA)
    chex.assert_trees_all_close(other.updates, one.updates, rtol=1e-10)
    assert other.metrics["residual"] < 1e-9

    learner = jax.tree.map(lambda x: x[0], state.learner)
    model = mx.problems.regressor(
        lambda key: THETA, lambda params, x: x @ params["w"] + params["b"]
    )
    predictions = mx.imaml(model, *EXACT, LAM, adapts=is_weight).predict(
        jax.random.key(0), THETA, learner, np.ones((1, 3))
    )
    np.testing.assert_allclose(predictions, learner.params["w"].sum() + THETA["b"])
    none = mx.imaml(PROBLEM, *EXACT, LAM, adapts=lambda p: dict.fromkeys(p, False))
    with pytest.raises(ValueError, match="adapts must choose at least one"):
        none.init(jax.random.key(0), THETA, ())


def fit(learner, meta_params, tasks, **options):
    loop = inner(learner, tasks)
    trainer = mx.trainer(mx.bptt(loop, 2), optax.sgd(0.0), chunk=2)
    state = trainer.init(jax.random.key(0), meta_params)
    return mx.fit(trainer, state, num_steps=6, **options)


@pytest.mark.slow
def test_fit_warns_once_of_inner_solves_that_diverge(capsys):
    def learner(rate):
        descent = descend(optax.sgd(rate), 20)
        return mx.imaml(mx.problems.quadratic(), descent, cg(5), 0.1)

    start, tasks = jnp.ones(5), mx.tasks.quadratics(5)
    with pytest.warns(RuntimeWarning, match="inner_diverged 1") as warned:
        result = fit(learner(0.2), start, tasks)
    assert len(warned) == 1
    assert "lower the learning rate of the solver" in str(warned[0].message)
    assert (result.history["inner_diverged"] == 1).all()
    assert (result.history["skipped"] == 0).all()
    assert "inner_diverged 1" in capsys.readouterr().err  # in the line of progress
    result = fit(learner(1e-3), start, tasks)
    assert (result.history["inner_diverged"] == 0).all()
    assert "inner_diverged" not in capsys.readouterr().err


# Around its maximum, where the solver starts and stays, ``cos`` has curvature -1.
HILL = mx.problems.stateless(
    lambda key, task: jnp.zeros(2),
    lambda key, params, batch: (jnp.sum(jnp.cos(params - batch)), {}),
)
AT_THE_TOP = mx.Tasks(
    lambda key, data: (), lambda key, data, task: 0.0, lambda key, data, task: 1.0
)


@pytest.mark.slow
def test_fit_warns_once_of_curvature_and_of_residuals():
    near = mx.tasks.with_query(AT_THE_TOP)

    def learner(lam):
        descent = descend(optax.sgd(0.1), 2)
        return mx.imaml_diagnosed(HILL, descent, cg(2), lam)

    with pytest.warns(RuntimeWarning) as warned:
        fit(learner(0.5), jnp.zeros(2), near, progress=None)
    told = sorted(str(w.message).split("(")[1].split()[0] for w in warned)
    # At 1: nothing was solved, and the meta-gradient is 0.
    assert told == ["negative_curvature", "residual", "update_norm"]
    fit(learner(4.0), jnp.zeros(2), near, progress=None)  # warns of nothing


def test_fit_warns_of_imaml_that_solves_nothing():
    learner = mx.imaml(HILL, descend(optax.sgd(0.1), 2), cg(2), 0.5)
    with pytest.warns(RuntimeWarning, match="exactly 0.*imaml_diagnosed tells"):
        fit(learner, jnp.zeros(2), AT_THE_TOP, progress=None)


def test_one_lam_a_layer_learned(x64):
    """Against finite differences of the meta-loss."""
    learner = mx.imaml(PROBLEM, *EXACT, lambda m: m["lam"], start=lambda m: m["theta"])
    loop = inner(learner)

    def meta_loss(lam):
        meta_params = {"theta": THETA, "lam": lam}
        return mx.unroll(
            loop, meta_params, loop.init(jax.random.key(1), meta_params, ()), (), 1
        )[1]

    run, lam = (
        jax.jit(jax.value_and_grad(meta_loss)),
        {"w": jnp.array(0.4), "b": jnp.array(0.9)},
    )
    for name in lam:
        above, below = (run(lam | {name: lam[name] + h})[0] for h in (1e-5, -1e-5))
        np.testing.assert_allclose(run(lam)[1][name], (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_the_error_falls_with_the_steps_of_the_solver_where_that_of_maml_does_not(x64):
    """The synthetic experiment: distance to the exact meta-gradient after more and more inner
    steps.
    """

    def error(learner, steps):
        loop = mx.inner(learner, TASKS, steps, "heldout")
        result, _, tasks = estimate(mx.bptt(loop, NUM_TASKS), THETA)
        exact = np.mean([by_hand(flat(THETA), LAM, task)[2] for task in tasks], 0)
        return np.linalg.norm(flat(result.updates) - exact) / np.linalg.norm(exact)

    errors = [
        error(mx.imaml(PROBLEM, descend(optax.sgd(0.3), n), cg(SIZE), LAM), 1)
        for n in (5, 200)
    ]
    assert errors[0] > 1e-2
    assert errors[1] < 1e-9
    assert (
        error(mx.imaml(PROBLEM, descend(optax.sgd(0.3), 200), cg(2), LAM), 1) > 1e-3
    ), "two steps of CG do not do"
    assert error(mx.maml(PROBLEM, 0.3), 64) > 0.1, (
        "MAML without the proximal term has another gradient in the limit"
    )


@pytest.mark.slow
def test_limits(x64):
    """Under a strong pull nothing adapts: joint training."""
    result, _, tasks = estimate(
        mx.bptt(inner(mx.imaml(PROBLEM, *EXACT, 1e9)), NUM_TASKS), THETA
    )
    x, y = (np.array([t[name][1] for t in tasks]) for name in "xy")
    x = np.insert(x, 3, 1.0, axis=2)
    want = np.mean(
        [a.T @ (a @ flat(THETA) - b) / 6 for a, b in zip(x, y, strict=True)], 0
    )
    np.testing.assert_allclose(flat(result.updates), want, rtol=1e-6)


@pytest.mark.slow
def test_what_is_masked_is_not_adapted_to(x64):
    problem = mx.problems.logistic(4, 3)
    learner = mx.imaml(problem, newton(2, cg(15)), cg(15), 0.7)
    learner_ignores(learner, learner.meta(jax.random.key(3)))


def test_solving_twice_is_solving_once(x64):
    """The pull is to the start and not to where the last solve ended."""
    learner = mx.imaml(PROBLEM, *EXACT, LAM)
    loop = mx.inner(learner, TASKS, 2, "heldout")
    run = jax.jit(
        lambda s, n: mx.unroll(loop, THETA, s, (), n)[0].learner.params,
        static_argnums=1,
    )
    start = loop.init(jax.random.key(0), jax.tree.map(jnp.asarray, THETA), ())
    chex.assert_trees_all_close(run(start, 2), run(start, 1), rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.slow
def test_the_diagnosis_is_of_the_solve_that_gives_the_meta_gradient(x64, steps):
    """Its residual is recomputed from the meta-gradient itself, ``A g - lam b``."""
    args = (PROBLEM, newton(1, cg(SIZE)), cg(steps), LAM)
    plain, _, _ = estimate(mx.bptt(inner(mx.imaml(*args)), 1), THETA)
    told, state, _ = estimate(
        mx.bptt(inner(mx.imaml_diagnosed(*args), mx.tasks.with_query(TASKS)), 1), THETA
    )
    chex.assert_trees_all_close(
        (told.updates, told.loss), (plain.updates, plain.loss), rtol=1e-12
    )
    (x, xq), (_, yq) = (
        np.insert(np.asarray(state.task["x"][0]), 3, 1.0, axis=2),
        np.asarray(state.task["y"][0]),
    )
    phi = np.append(state.learner.params["w"][0], state.learner.params["b"][0])
    b = xq.T @ (xq @ phi - yq) / 6
    residual = b - (x.T @ x / 6 + LAM * np.eye(SIZE)) @ flat(plain.updates) / LAM
    np.testing.assert_allclose(
        told.metrics["residual"],
        np.linalg.norm(residual) / np.linalg.norm(b),
        rtol=1e-8,
    )
    assert told.metrics["negative_curvature"] == 0


@pytest.mark.parametrize(("lam", "negative"), [(0.5, 1.0), (4.0, 0.0)])
def test_a_pull_that_is_too_weak_is_told(lam, negative):
    """``cos`` has curvature -1 at its maximum, where the solver, which starts there, stays."""
    problem = mx.problems.stateless(
        lambda key, task: jnp.zeros(2),
        lambda key, params, batch: (jnp.sum(jnp.cos(params - batch)), {}),
    )
    tasks = mx.Tasks(
        lambda key, data: (), lambda key, data, task: 0.0, lambda key, data, task: 1.0
    )
    learner = mx.imaml_diagnosed(problem, descend(optax.sgd(0.1), 2), cg(2), lam)
    curves = mx.evaluate(
        inner(learner, mx.tasks.with_query(tasks)),
        jax.random.key(0),
        jnp.zeros(2),
        num_tasks=2,
    )
    assert curves.metrics["negative_curvature"].mean() == negative


@pytest.mark.slow
def test_memory_and_work_of_reverse_mode():
    """Memory is flat in the steps of the solver, and the backward pass does not solve again."""

    def compiled(steps, **options):
        loop = inner(mx.imaml(PROBLEM, descend(optax.sgd(0.1), steps), cg(3), LAM))
        estimator = mx.bptt(loop, 4, **options)
        meta_params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), THETA)
        state = estimator.init(jax.random.key(0), meta_params, ())
        return (
            jax.jit(estimator.estimate)
            .lower(jax.random.key(1), meta_params, state, ())
            .compile()
        )

    short, long = compiled(10), compiled(1000)
    assert (
        short.memory_analysis().temp_size_in_bytes
        == long.memory_analysis().temp_size_in_bytes
    )
    assert short.as_text().count("while(") == compiled(10, remat=False).as_text().count(
        "while("
    )


NAMESAKE = mx.problems.stateless(
    lambda key, task: THETA,
    lambda key, params, batch: (params["w"].sum(), {"inner_grad_norm": 0.0}),
)
BAD = {
    "a network for a problem": (
        lambda: mx.imaml(lambda x: x, *EXACT, LAM),
        TypeError,
        "problem",
    ),
    "lam zero": (
        lambda: mx.imaml(PROBLEM, *EXACT, 0.0),
        ValueError,
        "lam must be greater than 0",
    ),
    "lam negative": (
        lambda: mx.imaml_diagnosed(PROBLEM, *EXACT, -1.0),
        ValueError,
        "lam must be greater than 0",
    ),
    "lam learned and negative": (
        lambda: inner(mx.imaml(PROBLEM, *EXACT, lambda m: -1.0)).step(
            THETA,
            inner(mx.imaml(PROBLEM, *EXACT, lambda m: -1.0)).init(
                jax.random.key(0), THETA, ()
            ),
            (),
        ),
        ValueError,
        "lam must be greater than 0",
    ),
    "a metric with the name of its own": (
        lambda: mx.imaml(NAMESAKE, *EXACT, LAM).step(
            jax.random.key(0),
            THETA,
            mx.imaml(PROBLEM, *EXACT, LAM).init(jax.random.key(0), THETA, ()),
            (),
        ),
        ValueError,
        "inner_grad_norm",
    ),
    "solver a transformation": (
        lambda: mx.imaml(PROBLEM, optax.sgd(0.1), cg(2), LAM),
        TypeError,
        "solver",
    ),
    "linear solver steps": (
        lambda: mx.imaml(PROBLEM, EXACT[0], 5, LAM),
        TypeError,
        "linear_solver",
    ),
    "start a tree": (
        lambda: mx.imaml(PROBLEM, *EXACT, LAM, start=THETA),
        TypeError,
        "start",
    ),
    "diagnosed without a query batch": (
        lambda: inner(mx.imaml_diagnosed(PROBLEM, *EXACT, LAM)).step(
            THETA,
            inner(mx.imaml(PROBLEM, *EXACT, LAM)).init(jax.random.key(0), THETA, ()),
            (),
        ),
        TypeError,
        "with_query",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()
