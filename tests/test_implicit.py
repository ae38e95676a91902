"""Implicit gradients against closed forms, unrolls, finite differences and the other mode of
differentiation.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import metajax as mx
from metajax.implicit import (
    argmin,
    cg,
    descend,
    direct,
    inverse_hvp,
    lanczos,
    neumann,
    newton,
    proximal,
)

RNG = np.random.default_rng(0)
X, Y, LABEL = RNG.normal(size=(12, 4)), RNG.normal(size=12), RNG.integers(0, 2, 12)
THETA = {"a": RNG.normal(size=3), "b": RNG.normal()}


def squares(phi, x=X, y=Y):
    """Half the squared error of a linear model with parameters ``{"a": [3], "b": []}``."""
    return 0.5 * jnp.sum((x @ jnp.append(phi["a"], phi["b"]) - y) ** 2)


def logistic(phi, x=X):
    return jnp.sum(
        jax.nn.softplus((1 - 2 * LABEL) * (x @ jnp.append(phi["a"], phi["b"])))
    )


def flat(tree):
    return ravel_pytree(tree)[0]


def solution(theta, lam, y=Y):
    """argmin of `squares` and the proximal term, in closed form."""
    return jnp.linalg.solve(
        X.T @ X + jnp.diag(jnp.broadcast_to(lam, 4)), X.T @ y + lam * flat(theta)
    )


def outer(phi):
    return jnp.sum(jnp.sin(flat(phi)))


SOLVERS = {
    "gradient descent": lambda: descend(optax.sgd(0.03), 1500),
    "L-BFGS": lambda: descend(optax.lbfgs(), 60),
    "Newton": lambda: newton(8, cg(8)),
}
FAST = descend(optax.sgd(0.08), 500)  # to compile
LINEAR = {
    "cg": lambda: cg(8),
    "neumann": lambda: neumann(1500, 0.03),
    "direct": direct,
    "lanczos": lambda: lanczos(8, 0.01),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", [squares, logistic])
@pytest.mark.slow
def test_a_solver_finds_the_minimum(x64, solver, loss):
    phi, metrics = jax.jit(argmin(proximal(loss), SOLVERS[solver](), cg(8)))(
        THETA, THETA, 0.7
    )
    assert metrics["inner_grad_norm"] < 1e-9
    grad = jax.grad(lambda phi: proximal(loss)(phi, THETA, 0.7))(phi)
    np.testing.assert_allclose(
        metrics["inner_grad_norm"], jnp.linalg.norm(flat(grad)), atol=1e-14
    )
    if loss is squares:
        np.testing.assert_allclose(flat(phi), solution(THETA, 0.7), rtol=1e-9)


@pytest.mark.parametrize("linear", LINEAR)
def test_the_gradient_of_ridge_regression_in_closed_form(x64, linear):
    solve = argmin(proximal(squares), SOLVERS["gradient descent"](), LINEAR[linear]())
    got = jax.jit(jax.grad(lambda *args: outer(solve(THETA, *args)[0]), (0, 1)))(
        THETA, 0.7
    )
    want = jax.jit(jax.grad(lambda *args: outer(solution(*args)), (0, 1)))(THETA, 0.7)
    chex.assert_trees_all_close(got, want, rtol=1e-9)


@pytest.mark.parametrize(
    "lam", [0.7, {"a": 0.5, "b": 0.9}, {"a": np.array([0.5, 0.6, 2.0]), "b": 0.9}]
)
@pytest.mark.slow
def test_one_lam_several_and_one_a_parameter(x64, lam):
    """Logistic regression: against a converged unroll, and against finite differences."""
    lam = jax.tree.map(jnp.asarray, lam)
    objective = proximal(logistic)
    solve = argmin(objective, FAST, cg(8))

    def unrolled(theta, lam):
        def body(phi, _):
            grads = jax.grad(objective)(phi, theta, lam)
            return jax.tree.map(lambda p, g: p - 0.08 * g, phi, grads), None

        return jax.lax.scan(body, THETA, None, length=500)[0]

    implicit = jax.jit(jax.grad(lambda *args: outer(solve(THETA, *args)[0]), (0, 1)))
    got = implicit(THETA, lam)
    want = jax.jit(jax.grad(lambda *args: outer(unrolled(*args)), (0, 1)))(THETA, lam)
    chex.assert_trees_all_close(got, want, rtol=1e-8)
    args, unravel = ravel_pytree((THETA, lam))
    value = jax.jit(lambda args: outer(solve(THETA, *unravel(args))[0]))
    steps = 1e-5 * np.eye(args.size)
    want = [(value(args + h) - value(args - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(flat(got), want, rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_the_gradient_of_lam_is_that_of_the_paper(x64):
    """``dL/dlambda = grad L_train^T x / lambda^2`` with ``(I + H / lambda) x = grad L_val``."""
    solve, lam = jax.jit(argmin(proximal(logistic), FAST, cg(8))), 0.7
    got_theta, got_lam = jax.jit(
        jax.grad(lambda *args: outer(solve(THETA, *args)[0]), (0, 1))
    )(THETA, lam)
    phi, unravel = ravel_pytree(solve(THETA, THETA, lam)[0])
    train = lambda phi: logistic(unravel(phi))  # noqa: E731
    x = jnp.linalg.solve(
        jnp.eye(4) + jax.hessian(train)(phi) / lam, jax.grad(outer)(phi)
    )
    np.testing.assert_allclose(flat(got_theta), x, rtol=1e-9)
    np.testing.assert_allclose(got_lam, jax.grad(train)(phi) @ x / lam**2, rtol=1e-9)


@pytest.mark.slow
def test_modes_and_orders(x64):
    """Second derivatives against the closed form, in all four ways to take them."""
    solve = argmin(proximal(squares), SOLVERS["gradient descent"](), cg(4))
    args, unravel = ravel_pytree((THETA, jnp.array(0.7)))
    got, want = (
        (lambda args: outer(solve(THETA, *unravel(args))[0])),
        (lambda args: outer(solution(*unravel(args)))),
    )
    forward, reverse = jax.jit(jax.jacfwd(got)), jax.jit(jax.jacrev(got))
    np.testing.assert_allclose(forward(args), reverse(args), rtol=1e-9)
    hessian = jax.jit(jax.hessian(want))(args)
    for first in (jax.jacfwd, jax.jacrev):
        for second in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(
                jax.jit(second(first(got)))(args), hessian, rtol=1e-7, atol=1e-9
            )


def test_second_derivatives_where_the_third_ones_matter(x64):
    """Logistic regression has a Hessian that moves; against finite differences of first
    derivatives.
    """
    solve = argmin(proximal(logistic), FAST, cg(4))
    args, unravel = ravel_pytree((THETA, jnp.array(0.7)))
    grad = jax.grad(lambda args: outer(solve(THETA, *unravel(args))[0]))
    want = [
        (jax.jit(grad)(args + h) - jax.jit(grad)(args - h)) / 2e-5
        for h in 1e-5 * np.eye(args.size)
    ]
    np.testing.assert_allclose(
        jax.jit(jax.jacrev(grad))(args), want, rtol=1e-6, atol=1e-8
    )


def test_what_is_closed_over_is_differentiated_and_the_start_is_not(x64):
    def value(start, y):
        solve = argmin(
            lambda phi: squares(phi, y=y) + 0.5 * jnp.sum(flat(phi) ** 2),
            newton(2, cg(4)),
            cg(4),
        )
        return outer(solve(start)[0])

    at_start, at_y = jax.jit(jax.grad(value, (0, 1)))(THETA, jnp.asarray(Y))
    chex.assert_trees_all_equal(at_start, jax.tree.map(jnp.zeros_like, THETA))
    want = jax.jit(
        jax.grad(lambda y: outer(solution(jax.tree.map(jnp.zeros_like, THETA), 1.0, y)))
    )(Y)
    np.testing.assert_allclose(at_y, want, rtol=1e-9)


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.slow
def test_vmap_equals_a_loop(x64, linear):
    """Newton's method: its line searches take different numbers of halvings side by side."""
    solve = argmin(proximal(logistic), newton(5, cg(4)), LINEAR[linear]())
    step = jax.value_and_grad(lambda theta, x: outer(solve(THETA, theta, 0.7, x)[0]))
    single, batched = jax.jit(step), jax.jit(jax.vmap(step, (None, 0)))
    xs = RNG.normal(size=(3, 12, 4)) * np.array([0.1, 1.0, 10.0])[:, None, None]
    loop = [single(THETA, x) for x in xs]
    chex.assert_trees_all_close(
        batched(THETA, xs), jax.tree.map(lambda *x: jnp.stack(x), *loop), rtol=1e-9
    )


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.checkpoint], ids=["plain", "rematerialised"]
)
def test_a_scan_of_solves(x64, wrap):
    """Each from where the last ended, against the chain written out and solved in closed form."""
    solve = argmin(proximal(squares), SOLVERS["gradient descent"](), cg(4))
    ys = RNG.normal(size=(3, 12))
    link = wrap(lambda theta, y: solve(THETA, theta, 0.7, X, y)[0])
    scanned = jax.jit(
        jax.grad(
            lambda t: outer(jax.lax.scan(lambda t, y: (link(t, y), None), t, ys)[0])
        )
    )

    def chain(theta):
        for y in ys:
            theta = solution(theta, 0.7, y)
        return outer(theta)

    np.testing.assert_allclose(
        flat(scanned(THETA)), jax.jit(jax.grad(chain))(flat(THETA)), rtol=1e-9
    )


def test_keys_and_labels_may_be_arguments(x64):
    """What has no derivative passes through; here the noise that a typed key stands for and integer
    labels.
    """

    def objective(phi, theta, key, label):
        noise = jax.random.normal(key, (3,))
        return jnp.sum((phi - theta - noise) ** 2) + jnp.sum(phi * label)

    solve = argmin(objective, newton(1, cg(1)), cg(1))
    key, label = jax.random.key(0), jnp.arange(3)
    grads = jax.jit(
        jax.grad(lambda theta: jnp.sum(solve(theta, theta, key, label)[0] ** 2))
    )(jnp.ones(3))
    np.testing.assert_allclose(
        grads, 2 * (1 + jax.random.normal(key, (3,)) - label / 2), rtol=1e-12
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    def temporaries(steps, unrolled=False):
        solver = descend(optax.sgd(0.01), steps)
        solve = argmin(proximal(logistic), solver, cg(3))
        if unrolled:

            def solve(init, *args):
                return solver(lambda phi: proximal(logistic)(phi, *args), init)

        grad = jax.jit(jax.grad(lambda theta: outer(solve(THETA, theta, 0.7)[0])))
        like = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), THETA)
        return grad.lower(like).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(1000) == temporaries(10)
    assert temporaries(1000, unrolled=True) > temporaries(10, unrolled=True) + 990 * 16


@pytest.mark.parametrize("linear", LINEAR)
def test_leaves_of_several_dtypes_keep_them(linear):
    def objective(phi):
        return jnp.sum(phi["a"].astype(jnp.float32)) * phi["b"]

    theta = {"a": jnp.full(3, 0.5, jnp.bfloat16), "b": jnp.float32(1.0)}
    solve = argmin(proximal(objective), newton(3, LINEAR[linear]()), LINEAR[linear]())
    phi = jax.eval_shape(lambda theta: solve(theta, theta, 2.0)[0], theta)
    grads = jax.eval_shape(
        jax.grad(lambda theta: outer(solve(theta, theta, 2.0)[0])), theta
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(phi, theta, grads)


# Linear solvers


def system(values, seed=0):
    q, _ = np.linalg.qr(
        np.random.default_rng(seed).normal(size=(len(values), len(values)))
    )
    matrix = q @ np.diag(values) @ q.T
    return (lambda v: {"a": (matrix @ flat(v))[:3], "b": (matrix @ flat(v))[3]}), matrix


VALUES = [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_linear_solvers_agree_with_the_dense_matrix(x64, damping):
    matvec, matrix = system(VALUES)
    want = np.linalg.solve(matrix + damping * np.eye(4), flat(THETA))
    by_lanczos = lanczos(4, 0.4, damping), lanczos(40, 0.4, damping)
    for solve in (
        cg(4, damping),
        cg(40, damping),
        neumann(400, 0.3, damping),
        direct(damping),
        *by_lanczos,
    ):
        x, residual, negative = jax.jit(lambda b, solve=solve: solve(matvec, b))(THETA)
        np.testing.assert_allclose(flat(x), want, rtol=1e-10)
        assert residual < 1e-12
        assert not negative


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.slow
def test_conjugate_gradients_minimise_over_the_krylov_space(x64, steps):
    matvec, matrix = system(VALUES)
    b = flat(THETA)
    krylov, _ = np.linalg.qr(
        np.stack([np.linalg.matrix_power(matrix, k) @ b for k in range(steps)], 1)
    )
    want = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
    for solve in (cg(steps), lanczos(steps, 0.4)):
        x, residual, _ = solve(matvec, THETA)
        np.testing.assert_allclose(flat(x), want, rtol=1e-10)
        np.testing.assert_allclose(
            residual, np.linalg.norm(b - matrix @ want) / np.linalg.norm(b), rtol=1e-9
        )


@pytest.mark.parametrize("steps", [2, 3, 4, 6])
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.slow
def test_the_floor_holds_for_the_matrix_on_the_krylov_space(x64, steps, damping):
    matvec, matrix = system([-1.0, 0.2, 2.0, 4.0])
    b = flat(THETA)
    krylov, _ = np.linalg.qr(
        np.stack(
            [np.linalg.matrix_power(matrix, k) @ b for k in range(min(steps, 4))], 1
        )
    )
    values, vectors = np.linalg.eigh(krylov.T @ matrix @ krylov)
    within = krylov @ vectors
    want = within @ ((within.T @ b) / (np.maximum(values, 0.5) + damping))
    x, residual, negative = lanczos(steps, 0.5, damping)(matvec, THETA)
    np.testing.assert_allclose(flat(x), want, rtol=1e-9)
    left = b - (matrix + damping * np.eye(4)) @ want
    np.testing.assert_allclose(
        residual, np.linalg.norm(left) / np.linalg.norm(b), rtol=1e-9
    )
    assert negative == (values + damping <= 0).any()
    assert negative or steps < 4


def test_the_neumann_series(x64):
    matvec, matrix = system(VALUES)
    b, step = flat(THETA), np.eye(4) - 0.3 * matrix
    want = 0.3 * sum(np.linalg.matrix_power(step, k) @ b for k in range(5))
    x, residual, _ = neumann(5, 0.3)(matvec, THETA)
    np.testing.assert_allclose(flat(x), want, rtol=1e-10)
    np.testing.assert_allclose(
        residual, np.linalg.norm(b - matrix @ want) / np.linalg.norm(b), rtol=1e-10
    )


@pytest.mark.parametrize("seed", range(4))
def test_an_indefinite_matrix_is_reported_and_the_best_iterate_given_back(x64, seed):
    matvec, matrix = system([-0.3, 1.0, 2.0, 4.0], seed)
    b = flat(THETA)
    # Conjugate gradients in NumPy, with all the iterates up to the first direction of negative
    # curvature.
    x, r, p, iterates = np.zeros(4), b, b, [np.zeros(4)]
    while len(iterates) <= 4 and p @ matrix @ p > 0:
        a = r @ r / (p @ matrix @ p)
        x, new = x + a * p, r - a * matrix @ p
        r, p = new, new + new @ new / (r @ r) * p
        iterates.append(x)
    assert len(iterates) <= 4, (
        "an indefinite matrix of size 4 shows itself within 4 steps"
    )
    residuals = [np.linalg.norm(b - matrix @ x) / np.linalg.norm(b) for x in iterates]
    got = cg(4)(matvec, THETA)
    assert got.negative_curvature
    np.testing.assert_allclose(
        flat(got.x), iterates[np.argmin(residuals)], rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(got.residual, min(residuals), rtol=1e-9)
    assert not cg(4, damping=0.4)(matvec, THETA).negative_curvature
    got = neumann(200, 0.3)(matvec, THETA)
    assert got.negative_curvature
    assert got.residual <= 1, (
        "the series grows without bound, what is given back does not"
    )
    got = direct()(matvec, THETA)
    assert got.negative_curvature
    np.testing.assert_allclose(flat(got.x), np.linalg.solve(matrix, b), rtol=1e-9)


def test_a_side_that_is_zero_or_not_a_number(x64):
    matvec, _ = system(VALUES)
    for solve in (cg(3), neumann(3, 0.3), direct(), lanczos(3, 0.4)):
        x, residual, negative = solve(matvec, jax.tree.map(jnp.zeros_like, THETA))
        assert not flat(x).any()
        assert residual == 0
        assert not negative
        assert np.isnan(flat(solve(matvec, THETA | {"b": jnp.nan}).x)).any(), (
            "what is not a number must not be hidden"
        )


def test_the_inverse_hessian_of_a_loss(x64):
    point, vector = THETA, jax.grad(outer)(THETA)
    x, residual, negative = inverse_hvp(proximal(logistic), cg(4))(
        point, vector, THETA, 0.7
    )
    unravel = ravel_pytree(THETA)[1]
    hessian = jax.hessian(lambda phi: logistic(unravel(phi)))(
        flat(THETA)
    ) + 0.7 * np.eye(4)
    np.testing.assert_allclose(
        flat(x), jnp.linalg.solve(hessian, flat(vector)), rtol=1e-9
    )
    assert residual < 1e-9
    assert not negative


# Newton's method


def norms(objective, init, steps):
    """Gradient norms along Newton's method."""

    def body(phi, _):
        phi, _ = newton(1, cg(8))(objective, phi)
        return phi, jnp.linalg.norm(flat(jax.grad(objective)(phi)))

    return np.asarray(
        jax.jit(lambda phi: jax.lax.scan(body, phi, None, length=steps)[1])(init)
    )


def test_newton_converges_quadratically(x64):
    n = norms(lambda phi: proximal(logistic)(phi, THETA, 0.1), THETA, 8)
    inside = [(a, b) for a, b in itertools.pairwise(n) if a < 1 and b > 1e-14]
    assert len(inside) >= 2, n
    assert all(b < a**2 for a, b in inside), n
    assert n[-1] < 1e-13, (
        "no stagnation where the objective can no longer be seen to fall"
    )


def test_newton_in_float32_goes_to_the_precision_of_its_gradient():
    theta = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), THETA)
    assert (
        norms(lambda phi: proximal(logistic)(phi, theta, 0.1) + 100.0, theta, 8)[-1]
        < 1e-5
    )


def test_newton_goes_back_along_a_step_that_is_too_long(x64):
    """``sqrt(1 + x^2)`` has the Newton map ``x -> -x^3``, which diverges from 2."""
    objective = lambda x: jnp.sqrt(1 + x**2)  # noqa: E731
    x, metrics = jax.jit(lambda x: newton(10, cg(1))(objective, x))(jnp.array(2.0))
    assert abs(x) < 1e-12
    assert metrics["inner_negative_curvature"] == 0


def test_newton_leaves_a_maximum_and_reports_it(x64):
    objective = lambda x: jnp.sum(x**4 / 4 - x**2 / 2)  # noqa: E731  (minima at -1 and 1)
    x, metrics = jax.jit(lambda x: newton(12, cg(2))(objective, x))(
        jnp.array([0.1, -0.2])
    )
    np.testing.assert_allclose(x, [1.0, -1.0], rtol=1e-9)
    assert 0 < metrics["inner_negative_curvature"] < 1


def test_newton_avoids_where_the_objective_is_not_a_number(x64):
    objective = lambda x: x - jnp.log(x)  # noqa: E731
    x, _ = jax.jit(lambda x: newton(8, cg(1))(objective, x))(
        jnp.array(5.0)
    )  # the full step goes to -15
    np.testing.assert_allclose(x, 1.0, rtol=1e-12)


SOLVER, LINEAR_SOLVER = newton(1, cg(1)), cg(1)
ONES = jnp.ones(2)
BAD = {
    "proximal: theta of another shape": (
        lambda: proximal(squares)(THETA, THETA | {"a": jnp.ones(1)}, 0.7),
        ValueError,
        r"theta\['a'\] must be like phi\['a'\]",
    ),
    "objective missing": (
        lambda: argmin(None, SOLVER, LINEAR_SOLVER),
        TypeError,
        "objective",
    ),
    "solver an optax transformation": (
        lambda: argmin(squares, optax.sgd(0.1), LINEAR_SOLVER),
        TypeError,
        "solver",
    ),
    "linear solver by name": (
        lambda: argmin(squares, SOLVER, "cg"),
        TypeError,
        "linear_solver",
    ),
    "objective not a scalar": (
        lambda: argmin(lambda x: x**2, SOLVER, LINEAR_SOLVER)(ONES),
        ValueError,
        "the value of objective must be a floating-point scalar",
    ),
    "objective with metrics": (
        lambda: argmin(lambda x: (x.sum(), {}), SOLVER, LINEAR_SOLVER)(ONES),
        TypeError,
        "the value of objective must be a floating-point scalar alone, got tuple of 2",
    ),
    "a linear solver for the solver": (
        lambda: argmin(jnp.sum, LINEAR_SOLVER, LINEAR_SOLVER)(ONES),
        ValueError,
        "does a linear solver stand in the place of a solver",
    ),
    "a linear solver that returns x alone": (
        lambda: jax.grad(
            lambda a: argmin(
                lambda x, a: a * (x**2).sum(), SOLVER, lambda matvec, b: b
            )(ONES, a)[0].sum()
        )(1.0),
        TypeError,
        "linear_solver must return a LinearSolution",
    ),
    "start of integers": (
        lambda: argmin(jnp.sum, SOLVER, LINEAR_SOLVER)(jnp.arange(2)),
        TypeError,
        "init",
    ),
    "solver that changes the tree": (
        lambda: argmin(jnp.sum, lambda f, x: ((x, x), {}), LINEAR_SOLVER)(ONES),
        ValueError,
        "the solution of solver",
    ),
    "solver that changes the shape": (
        lambda: argmin(jnp.sum, lambda f, x: (x[:1], {}), LINEAR_SOLVER)(ONES),
        ValueError,
        "the solution of solver",
    ),
    "inverse of no objective": (
        lambda: inverse_hvp(1.0, LINEAR_SOLVER),
        TypeError,
        "objective",
    ),
    "inverse by name": (lambda: inverse_hvp(squares, "cg"), TypeError, "linear_solver"),
    "proximal of no loss": (lambda: proximal(1.0), TypeError, "loss"),
    "lam zero": (
        lambda: proximal(jnp.sum)(ONES, ONES, 0.0),
        ValueError,
        "lam must be greater than 0",
    ),
    "lam NaN": (
        lambda: proximal(jnp.sum)(ONES, ONES, float("nan")),
        ValueError,
        "lam must be greater than 0",
    ),
    "a lam negative": (
        lambda: proximal(lambda p: p["a"].sum())(
            {"a": ONES}, {"a": ONES}, {"a": np.array([1.0, -1.0])}
        ),
        ValueError,
        r"lam\['a'\] must be greater",
    ),
    "lam of another shape": (
        lambda: proximal(jnp.sum)(ONES, ONES, jnp.ones(3)),
        ValueError,
        "broadcast",
    ),
    "descend by name": (
        lambda: descend("sgd", 3),
        TypeError,
        "optax.GradientTransformation",
    ),
    "descend by a rate": (
        lambda: descend(optax.sgd, 3),
        TypeError,
        "optax.GradientTransformation",
    ),
    "descend no step": (lambda: descend(optax.sgd(0.1), 0), ValueError, "steps"),
    "newton no step": (lambda: newton(0, cg(1)), ValueError, "steps"),
    "newton steps of cg": (lambda: newton(3, 5), TypeError, "linear_solver"),
    "cg no step": (lambda: cg(0), ValueError, "steps"),
    "cg steps a float": (lambda: cg(5.0), TypeError, "steps"),
    "cg damping negative": (lambda: cg(5, -1.0), ValueError, "damping"),
    "neumann no step": (lambda: neumann(0, 0.1), ValueError, "steps"),
    "neumann rate zero": (lambda: neumann(3, 0.0), ValueError, "rate"),
    "lanczos no step": (lambda: lanczos(0, 0.1), ValueError, "steps"),
    "lanczos floor zero": (lambda: lanczos(3, 0.0), ValueError, "floor"),
    "lanczos damping negative": (lambda: lanczos(3, 0.1, -1.0), ValueError, "damping"),
    "direct damping NaN": (lambda: direct(float("nan")), ValueError, "damping"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"(?s){message}"):
        call()


def test_a_solve_outside_of_jit_is_compiled_once():
    """And looks at the values of its arguments all the same."""
    traces = []

    def solver(objective, init):
        traces.append(None)
        return newton(1, direct())(objective, init)

    solve = argmin(proximal(jnp.sum), solver, direct())
    inverse = inverse_hvp(proximal(jnp.sum), lambda hvp, b: traces.append(b) or b)
    for lam in (1.0, 2.0, 4.0):
        phi, _ = solve(ONES, ONES, lam)
        np.testing.assert_allclose(phi, 1 - 1 / lam, rtol=1e-6)
        inverse(ONES, ONES, ONES, lam)
    assert len(traces) == 2, "one of each"
    with pytest.raises(ValueError, match="lam must be greater than 0"):
        solve(ONES, ONES, -1.0)


@pytest.mark.slow
def test_what_an_objective_closes_over_is_seen_by_each_solve():
    def solution(target):
        solver = newton(1, direct())
        solve = argmin(lambda phi: jnp.sum((phi - target) ** 2), solver, direct())
        return solve(jnp.zeros(2))[0].sum()

    for target in (1.0, 2.0):
        value, slope = jax.value_and_grad(solution)(target)
        np.testing.assert_allclose((value, slope), (2 * target, 2), rtol=1e-6)


def test_a_traced_lam_below_zero_makes_the_objective_nan():
    objective = mx.implicit.proximal(lambda phi: jnp.sum(phi**2))
    at = jax.jit(lambda lam: objective(jnp.ones(2), jnp.zeros(2), lam))
    assert float(at(3.0)) == 5.0
    assert np.isnan(at(-3.0))
    assert np.isnan(at(0.0))


def test_a_solve_that_goes_the_wrong_way_is_told(x64):
    """Descent on ``x^T diag(1, 4) x / 2`` diverges where the rate exceeds 2 / 4."""

    def objective(x):
        return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * x**2)

    def diverged(rate, start):
        solve = argmin(objective, descend(optax.sgd(rate), 20), cg(2))
        return solve(start)[1]["inner_diverged"]

    assert diverged(0.49, jnp.ones(2)) == 0
    assert diverged(0.51, jnp.ones(2)) == 1
    assert diverged(1e200, jnp.ones(2)) == 1  # not a number any more
    assert diverged(0.49, jnp.zeros(2)) == 0
    assert diverged(0.51, jnp.array([1.0, 0.0])) == 0

    # Downwards without end is no way to a minimum either.
    uphill = argmin(lambda x: -jnp.sum(x**2), descend(optax.sgd(0.1), 3), cg(2))
    assert uphill(jnp.ones(2))[1]["inner_diverged"] == 1


def test_newton_tells_how_its_linear_solves_went(x64):
    """One step of conjugate gradients on ``diag(1, 9) x = (1, 9)`` leaves a known part of it."""

    def objective(x):
        return 0.5 * jnp.sum(jnp.array([1.0, 9.0]) * (x - 1) ** 2)

    b = np.array([1.0, 9.0])
    length = b @ b / (b @ (np.array([1.0, 9.0]) * b))
    left = b - length * np.array([1.0, 9.0]) * b
    want = np.linalg.norm(left) / np.linalg.norm(b)
    for tolerance in (None, 0.0):
        _, metrics = newton(1, cg(1), tolerance)(objective, jnp.zeros(2))
        np.testing.assert_allclose(metrics["inner_residual"], want)
        _, metrics = newton(1, cg(2), tolerance)(objective, jnp.zeros(2))
        assert metrics["inner_residual"] < 1e-12


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_descent_stops_at_its_tolerance(x64, rate):
    """The gradient ``x`` shrinks by ``1 - rate`` a step: it stops after a known number of them."""

    def objective(x):
        return 0.5 * jnp.sum(x**2)

    solver = jax.jit(lambda x: descend(optax.sgd(rate), 100, 1e-3)(objective, x))
    x, metrics = solver(jnp.array([3.0, 4.0]))
    steps = int(np.ceil(np.log(1e-3 / 5) / np.log(1 - rate)))
    assert metrics["inner_steps"] == min(steps, 100)
    np.testing.assert_allclose(x, np.array([3.0, 4.0]) * (1 - rate) ** min(steps, 100))
    several, metrics = jax.vmap(solver)(
        jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-2, 0.0]])
    )
    np.testing.assert_allclose(several[0], x)
    assert metrics["inner_steps"][1] == 0
    np.testing.assert_array_equal(several[1], 0)
    last = int(np.ceil(np.log(1e-3 / 1e-2) / np.log(1 - rate)))
    assert metrics["inner_steps"].tolist() == [min(steps, 100), 0, last]


def test_adam_within_its_tolerance_does_not_move(x64):
    """A step of Adam is as long as its rate, however small the gradient."""
    solver = descend(optax.adam(0.1), 10, tolerance=1e-2)
    x, metrics = solver(lambda x: 0.5 * jnp.sum(x**2), jnp.array([1e-3]))
    assert (float(x[0]), int(metrics["inner_steps"])) == (1e-3, 0)
    x, metrics = solver(lambda x: jnp.sum(jnp.log(x)), jnp.array([np.nan]))
    assert int(metrics["inner_steps"]) == 0  # nor where nothing is a number


@pytest.mark.slow
def test_newton_stops_at_its_tolerance_and_the_gradient_is_as_exact(x64):
    def objective(x, a):
        return jnp.sum(jnp.cosh(x - a))

    free, stopped = (newton(30, cg(2)), newton(30, cg(2), tolerance=1e-9))
    a = jnp.array([1.0, -2.0])
    slopes = []
    for solver in (free, stopped):
        solve = argmin(objective, solver, cg(2))
        slopes.append(jax.jacrev(lambda a, solve=solve: solve(jnp.zeros(2), a)[0])(a))
    np.testing.assert_allclose(slopes, np.stack([np.eye(2)] * 2), atol=1e-9)
    _, metrics = stopped(lambda x: objective(x, a), jnp.zeros(2))
    assert 3 < int(metrics["inner_steps"]) < 10


def test_the_names_are_public():
    assert mx.implicit.argmin is argmin
