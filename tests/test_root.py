"""Roots and fixed points against closed forms, finite differences and both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metajax as mx
from metajax.implicit import cg, descend, direct, fixed_point, iterate, newton, root

RNG = np.random.default_rng(0)
A = RNG.normal(size=(3, 3))  # neither symmetric nor definite
A += 2 * np.sign(np.linalg.det(A)) * np.eye(3)
B = RNG.normal(size=3)
CONTRACTION = 0.5 * A / np.linalg.norm(A, 2)


def linear(x, b, scale=1.0):
    return {"x": scale * (A @ x["x"]) - b}


def bent(x, a):
    """A rotation and a cubic: the Jacobian is not symmetric."""
    u, v = x
    return jnp.stack([u + a * v + u**3 - 1, v - u * a**2 + jnp.sinh(v)])


def finite_difference(f, x, size=1e-6):
    return (f(x + size) - f(x - size)) / (2 * size)


@pytest.mark.parametrize("linear_solver", [cg(3), direct()])
@pytest.mark.parametrize("jacobian", [jax.jacfwd, jax.jacrev])
def test_the_root_of_a_linear_map_in_closed_form(x64, linear_solver, jacobian):
    solve = root(linear, newton(1, direct()), linear_solver)

    def found(b):
        phi, metrics = solve({"x": jnp.zeros(3)}, b)
        return phi["x"], metrics

    x, metrics = found(B)
    np.testing.assert_allclose(x, np.linalg.solve(A, B), rtol=1e-8)
    assert metrics["inner_residual_norm"] < 1e-8
    assert metrics["inner_diverged"] == 0
    slopes = jax.jit(jacobian(lambda b: found(b)[0]))(B)
    np.testing.assert_allclose(slopes, np.linalg.inv(A), rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_root_that_bends_against_finite_differences(x64):
    solve = root(bent, newton(30, direct()), direct())

    @jax.jit
    def f(a):
        return jnp.sin(solve(jnp.zeros(2), a)[0]).sum()

    a = 0.7
    want = finite_difference(f, a)
    np.testing.assert_allclose(jax.grad(f)(a), want, rtol=1e-7)
    np.testing.assert_allclose(jax.jvp(f, (a,), (1.0,))[1], want, rtol=1e-7)
    second = finite_difference(jax.grad(f), a, 1e-5)
    np.testing.assert_allclose(jax.grad(jax.grad(f))(a), second, rtol=1e-6)
    several = jax.vmap(jax.grad(f))(jnp.array([0.2, 0.7]))
    np.testing.assert_allclose(several, [jax.grad(f)(0.2), jax.grad(f)(0.7)], rtol=1e-9)


@pytest.mark.parametrize("jacobian", [jax.jacfwd, jax.jacrev])
@pytest.mark.slow
def test_a_fixed_point_in_closed_form(x64, jacobian):
    def affine(x, b, scale):
        return scale * (CONTRACTION @ x) + b

    solve = fixed_point(affine, iterate(200), cg(3))
    rest = np.eye(3) - CONTRACTION
    x, metrics = solve(jnp.zeros(3), B, 1.0)
    np.testing.assert_allclose(x, np.linalg.solve(rest, B), rtol=1e-10)
    assert metrics["inner_residual_norm"] < 1e-10

    slopes = jacobian(lambda b: solve(jnp.zeros(3), b, 1.0)[0])(B)
    np.testing.assert_allclose(slopes, np.linalg.inv(rest), rtol=1e-6)
    slope = jacobian(lambda scale: solve(jnp.zeros(3), B, scale)[0])(1.0)
    want = np.linalg.solve(rest, CONTRACTION @ np.linalg.solve(rest, B))
    np.testing.assert_allclose(slope, want, rtol=1e-6)


def test_gradient_descent_as_a_fixed_point_is_the_argmin(x64):
    """What `argmin` differentiates by its gradient, found and differentiated as a fixed point."""

    def objective(x, a):
        return jnp.sum(jnp.cosh(x - a)) + 0.1 * jnp.sum(x**2)

    def step(x, a):
        return x - 0.3 * jax.grad(objective)(x, a)

    a = jnp.asarray(B)
    one = fixed_point(step, iterate(300), cg(3))
    other = mx.implicit.argmin(objective, descend(optax.sgd(0.3), 300), cg(3))
    for solve in (one, other):
        x, _ = solve(jnp.zeros(3), a)
        curvature = np.cosh(x - a)
        slopes = jax.jacrev(lambda a, solve=solve: solve(jnp.zeros(3), a)[0])(a)
        want = np.diag(curvature / (curvature + 0.2))
        np.testing.assert_allclose(slopes, want, atol=1e-8)


def test_iteration_stops_at_its_tolerance_and_one_that_grows_is_told(x64):
    solver = iterate(500, tolerance=1e-6)
    x, metrics = solver(lambda x: 0.5 * x + 1, jnp.float64(0.0))
    # After n halvings of 2 the next step is as long as 2^-n.
    assert int(metrics["inner_steps"]) == 20
    assert abs(float(x) - 2) < 2e-6

    grows = fixed_point(lambda x, a: a * x + 1, iterate(10), cg(1))
    assert grows(1.0, 0.5)[1]["inner_diverged"] == 0
    assert grows(1.0, 3.0)[1]["inner_diverged"] == 1
    assert grows(1.0, np.inf)[1]["inner_diverged"] == 1


def test_bad_input():
    def half(x):
        return x["x"][:1]

    with pytest.raises(ValueError, match="what f returned must have the tree struct"):
        root(half, newton(1, cg(1)), cg(1))({"x": jnp.ones(2)})
    with pytest.raises(ValueError, match="what f returned must be like phi"):
        fixed_point(lambda x: x[:1], iterate(2), cg(1))(jnp.ones(2))
    with pytest.raises(TypeError, match="init must be a floating-point array"):
        fixed_point(lambda x: x, iterate(2), cg(1))(jnp.ones(2, int))
    with pytest.raises(TypeError, match="linear_solver must return a LinearSolution"):
        jax.grad(
            lambda a: fixed_point(jnp.multiply, iterate(2), lambda f, b: b)(0.0, a)[0]
        )(0.5)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        iterate(0)
    with pytest.raises(ValueError, match="tolerance must be finite and at least 0"):
        iterate(2, tolerance=-1.0)
