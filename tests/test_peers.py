"""Implicit derivatives beside those of another library, in float64 on the same inputs."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx

with warnings.catch_warnings():  # it is no longer maintained, and still an oracle
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 5)), np.sign(RNG.normal(size=30))
CG = mx.implicit.cg(5)


def logistic(w, log_penalties):
    losses = jnp.log1p(jnp.exp(-Y * (X @ w)))
    return jnp.sum(losses) + jnp.sum(jnp.exp(log_penalties) * w**2)


@pytest.mark.parametrize("penalties", [0.3, np.linspace(-1, 1, 5)], ids=["one", "each"])
def test_argmin(x64, penalties):
    """Jacobians of the solution of a penalised logistic regression."""
    theirs = jaxopt.LBFGS(logistic, maxiter=200, tol=1e-13)
    want = jax.jacobian(lambda p: theirs.run(jnp.zeros(5), p).params)(penalties)
    solve = mx.implicit.argmin(logistic, mx.implicit.newton(20, CG), CG)
    got = jax.jacobian(lambda p: solve(jnp.zeros(5), p)[0])(penalties)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)


def test_root(x64):
    """Of a field that is no gradient, so that its Jacobian is not symmetric."""
    matrix = 3 * np.eye(5) + RNG.normal(size=(5, 5)) / 4

    def field(x, a):
        return matrix @ x + jnp.sin(x) / 3 - a

    def find(x, a):
        del x
        return _newton(lambda x: field(x, a), jnp.zeros(5))

    a = jnp.asarray(RNG.normal(size=5))
    theirs = jaxopt.implicit_diff.custom_root(field)(find)
    want = jax.jacobian(lambda a: theirs(jnp.zeros(5), a))(a)
    solve = mx.implicit.root(field, mx.implicit.newton(30, CG), CG)
    got = jax.jacobian(lambda a: solve(jnp.zeros(5), a)[0])(a)
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


def _newton(f, x):
    for _ in range(30):
        x = x - jnp.linalg.solve(jax.jacobian(f)(x), f(x))
    return x


def test_fixed_point(x64):
    matrix = RNG.normal(size=(5, 5)) / 8

    def move(x, a):
        return jnp.tanh(matrix @ x + a)

    a = jnp.asarray(RNG.normal(size=5))
    theirs = jaxopt.FixedPointIteration(move, maxiter=300, tol=1e-14)
    want = jax.jacobian(lambda a: theirs.run(jnp.zeros(5), a).params)(a)
    solve = mx.implicit.fixed_point(move, mx.implicit.iterate(200), CG)
    got = jax.jacobian(lambda a: solve(jnp.zeros(5), a)[0])(a)
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


def test_the_meta_gradient_of_imaml(x64):
    """One task: a proximal solve, and the loss of another batch at its solution."""
    x_query, y_query = RNG.normal(size=(8, 5)), np.sign(RNG.normal(size=8))

    def loss(key, w, batch):
        return jnp.mean(jnp.log1p(jnp.exp(-batch["y"] * (batch["x"] @ w)))), {}

    problem = mx.problems.stateless(lambda key, task: jnp.zeros(5), loss)
    tasks = mx.Tasks(
        lambda key, data: (),
        lambda key, data, task: {"x": X, "y": Y},
        lambda key, data, task: {"x": x_query, "y": y_query},
    )
    learner = mx.imaml(problem, mx.implicit.newton(20, CG), CG, lam=0.7)
    loop = mx.inner(learner, tasks, 1, meta_loss="heldout")
    estimator = mx.bptt(loop, 1)
    theta = jnp.asarray(RNG.normal(size=5))
    state = estimator.init(jax.random.key(0), theta, ())
    got, _ = estimator.estimate(jax.random.key(1), theta, state, ())

    def proximal(w, theta):
        value, _ = loss(None, w, {"x": X, "y": Y})
        return value + 0.35 * optax.tree.norm(w - theta, squared=True)

    theirs = jaxopt.LBFGS(proximal, maxiter=200, tol=1e-13)

    def outer(theta):
        w = theirs.run(theta, theta).params
        return loss(None, w, {"x": x_query, "y": y_query})[0]

    want = jax.grad(outer)(theta)
    np.testing.assert_allclose(got.updates, want, rtol=1e-8, atol=1e-10)
