"""Networks of bfloat16: logits, losses, metrics and solves are float32, with its values."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import IMAGES, MINIBATCHES, System, learners

import metajax as mx

SYSTEMS = learners()
HALF = jnp.bfloat16
RNG = np.random.default_rng(0)


def halved(tree):
    """The floating leaves as bfloat16."""

    def halve(x):
        is_float = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, HALF) if is_float else x

    return jax.tree.map(halve, tree)


def exactly(x):
    return np.asarray(x, np.float64)


def cross_entropy(logits, label):
    """The mean cross-entropy and the accuracy, in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, label[..., None], -1)
    return -chosen.mean(), (logits.argmax(-1) == label).mean()


def many():
    """Enough of them that a mean in bfloat16 would not do."""
    return {
        "image": jnp.asarray(RNG.normal(size=(300, 5)), jnp.float32),
        "label": jnp.asarray(RNG.integers(0, 4, 300)),
        "x": jnp.asarray(RNG.normal(size=(300, 5)), jnp.float32),
        "y": jnp.asarray(RNG.normal(size=(300, 4)), jnp.float32),
    }


def net(w, x):
    return x.astype(HALF) @ w


def init_net(key):
    return jax.random.normal(key, (5, 4), HALF)


@pytest.mark.slow
def test_losses_and_metrics_are_those_of_the_same_outputs(key):
    batch = many()
    label = np.asarray(batch["label"])
    w = init_net(key)
    outputs = exactly(net(w, batch["image"]))

    problem = mx.problems.classifier(init_net, net)
    for masked in (batch, batch | {"mask": jnp.arange(300) < 201}):
        kept = slice(0, 201 if "mask" in masked else 300)
        loss, (metrics, _) = problem.loss(key, w, (), masked)
        got = (loss, metrics["accuracy"])
        want = cross_entropy(outputs[kept], label[kept])
        np.testing.assert_allclose(got, want, rtol=1e-5)
        np.testing.assert_allclose(problem.test(key, w, (), masked)[0], loss)
    np.testing.assert_array_equal(problem.predict(key, w, (), batch["image"]), outputs)

    problem = mx.problems.regressor(init_net, net)
    error = exactly(net(w, batch["x"])) - exactly(batch["y"])
    loss, _ = problem.test(key, w, (), batch)
    np.testing.assert_allclose(loss, (error**2).mean(), rtol=1e-5)
    error = exactly(net(w, batch["x"])) - exactly(batch["y"].astype(HALF))
    loss, _ = problem.test(key, w, (), batch | {"y": batch["y"].astype(HALF)})
    np.testing.assert_allclose(loss, (error**2).mean(), rtol=1e-5)


@pytest.mark.slow
def test_the_solve_and_the_distances_of_few_shot_learners(key):
    """Against NumPy on the same embeddings."""
    batch = many()
    support = {name: x[:40] for name, x in batch.items()}
    member = np.eye(4)[np.asarray(support["label"])]
    w = init_net(key)
    x, query = exactly(net(w, support["image"])), exactly(net(w, batch["image"]))

    learner = mx.ridge((init_net, net), 4, 4, lam=2.0, scale=3.0)
    meta_params = learner.meta(key) | {"params": w}
    state = learner.init(key, meta_params, ())
    state, _, _ = learner.step(key, meta_params, state, support)
    padded, all_padded = (
        np.pad(a, ((0, 0), (0, 1)), constant_values=1) for a in (x, query)
    )
    dual = np.linalg.solve(padded @ padded.T + 2 * np.eye(40), member)
    got = learner.predict(key, meta_params, state, batch["image"])
    np.testing.assert_allclose(got, 3 * all_padded @ padded.T @ dual, atol=1e-3)
    loss, metrics = learner.test(key, meta_params, state, batch)
    want = cross_entropy(exactly(got), np.asarray(batch["label"]))
    np.testing.assert_allclose((loss, metrics["accuracy"]), want, rtol=1e-5)

    learner = mx.protonet((init_net, net), 4, 4)
    state, _, _ = learner.step(key, w, learner.init(key, w, ()), support)
    prototypes = member.T @ x / member.sum(0)[:, None]
    want = -((query[:, None] - prototypes) ** 2).sum(-1)
    got = learner.predict(key, w, state, batch["image"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "solver",
    [mx.implicit.newton(1, mx.implicit.cg(3)), mx.implicit.descend(optax.sgd(0.3), 60)],
)
def test_an_inner_problem_is_solved_in_float32(solver):
    """Steps that bfloat16 would round away are taken, and the solution is rounded once."""
    target = jnp.array([1.0, 2.0, 3.0], HALF)
    objective = mx.implicit.proximal(lambda phi, y: 0.5 * jnp.sum((phi - y) ** 2))
    solve = mx.implicit.argmin(objective, solver, mx.implicit.cg(3))
    centre = jnp.array([100.0, 7.0, 0.1], HALF)
    phi, metrics = solve(centre, centre, 0.5, target)
    want = (exactly(target) + 0.5 * exactly(centre)) / 1.5
    assert phi.dtype == HALF
    np.testing.assert_array_equal(phi, jnp.asarray(want, HALF))
    assert metrics["inner_grad_norm"].dtype == jnp.float32
    # d phi / d centre = lam / (1 + lam)
    slope = jax.grad(lambda c: solve(centre, c, 0.5, target)[0].sum().astype(float))(
        centre
    )
    np.testing.assert_allclose(exactly(slope), 1 / 3, rtol=4e-3)


PROBLEMS = {
    "mlp": (mx.problems.mlp((4, 3)), MINIBATCHES, IMAGES),
    "logistic": (mx.problems.logistic(4, 3, 0.1), MINIBATCHES, IMAGES),
    "autoencoder": (mx.problems.autoencoder((4, 2)), MINIBATCHES, IMAGES),
    "quadratic": (mx.problems.quadratic(), mx.tasks.quadratics(3), ()),
    "random_mlp": (*mx.problems.random_mlp(MINIBATCHES, 4, 3), IMAGES),
    "character_gru": (
        mx.problems.character_gru(5, 4),
        mx.tasks.text(5, length=6),
        {
            "text": np.arange(99) % 5,
            "start": np.arange(0, 99, 9),
            "alphabet": np.zeros(5),
        },
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.slow
def test_problems_of_the_package_in_bfloat16(name, key):
    """The metrics and the loss are those of the predictions, in float32."""
    problem, tasks, data = PROBLEMS[name]
    learner = mx.l2l(lambda rate: optax.sgd(rate), problem)
    _check_dtypes(System(learner, tasks, data), HALF(0.1))
    task = tasks.sample(key, data)
    params, state = halved(problem.init(key, task))
    batch = halved(tasks.test(key, data, task))
    loss, metrics = problem.test(key, params, state, batch)
    if name == "autoencoder":
        flat = batch["image"].reshape(len(batch["image"]), -1)
        got = exactly(problem.predict(key, params, state, flat))
        np.testing.assert_allclose(loss, ((got - exactly(flat)) ** 2).mean(), rtol=1e-5)
    if name in ("mlp", "logistic"):
        got = exactly(problem.predict(key, params, state, batch["image"]))
        want, accuracy = cross_entropy(got, np.asarray(batch["label"]))
        if name == "logistic":
            want += 0.05 * (exactly(params[0]["w"]) ** 2).sum()
        np.testing.assert_allclose(
            (loss, metrics["accuracy"]), (want, accuracy), rtol=1e-5
        )


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_learners_report_is_float32(name):
    """Traced alone: all learners with meta-parameters of bfloat16, on data of bfloat16 too."""
    system = SYSTEMS[name]
    _check_dtypes(system, jax.eval_shape(lambda: halved(system.meta_params())))


def _check_dtypes(system, meta_params):
    tasks = replace(
        system.tasks,
        train=lambda *args: halved(system.tasks.train(*args)),
        test=lambda *args: halved(system.tasks.test(*args)),
    )
    learner = system.learner

    def init(*args):  # a state of bfloat16, where the learner holds parameters in it
        state = learner.init(*args)
        if not hasattr(state, "params"):
            return state
        return state._replace(params=halved(state.params))

    loop = mx.inner(replace(learner, init=init), tasks, learner.steps or 2)

    def run(key, meta_params):
        state = loop.init(key, meta_params, system.data)
        state, reported = loop.step(meta_params, state, system.data)
        tested = loop.test(meta_params, state, system.data)
        batch = tasks.test(key, system.data, state.task)
        predicted = ()
        if "label" in batch:
            predicted = learner.predict(key, meta_params, state.learner, batch["image"])
        return reported, tested, predicted

    shapes = jax.eval_shape(run, jax.random.key(0), meta_params)
    for path, x in jax.tree_util.tree_leaves_with_path(shapes):
        assert x.dtype == jnp.float32, jax.tree_util.keystr(path)
