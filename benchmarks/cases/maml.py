"""Few-shot learners on conv-4, and the linear solve by itself."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import metajax as mx
from benchmarks import peers
from benchmarks.measure import Measured, Program, compiled, contest
from benchmarks.table import Row, Setting, Target, compared, memory
from benchmarks.workloads import Workload, plain_loss, workload

PLAIN = "conv_general_dilated under vmap"
RTOL = 1e-3  # ReLU networks in float32 after several steps


def maml(setting: Setting) -> list[Row]:
    """A meta-gradient of MAML through the steps, and what rematerialising costs and saves."""
    work = workload("maml", setting.smoke)
    kept = workload("maml", setting.smoke, remat=False)
    programs = {
        "ours": Program(work.ours, work.args),
        PLAIN: Program(partial(plain_maml, work), (work.params, *work.batches)),
        "everything kept": Program(kept.ours, kept.args),
    }
    found = contest(programs, setting.limits, rtol=RTOL, rounds=setting.rounds)
    against_plain = {name: found[name] for name in ("ours", PLAIN)}
    against_kept = {name: found[name] for name in ("ours", "everything kept")}
    return [
        *_rows(setting, work, against_plain, 2),
        compared("maml", f"{work.steps} steps", against_kept),
        memory("maml", f"temporary memory, {work.steps} steps", against_kept),
    ]


def imaml(setting: Setting) -> list[Row]:
    """A meta-gradient of iMAML, and its memory against the number of inner steps."""
    work = workload("imaml", setting.smoke)
    programs = {
        "ours": Program(work.ours, work.args),
        PLAIN: Program(partial(plain_imaml, work), (work.params, *work.batches)),
    }
    found = contest(programs, setting.limits, rtol=RTOL, rounds=setting.rounds)

    longer = workload("imaml", setting.smoke, 4 * work.steps)
    _, cost = compiled(Program(longer.ours, longer.args), setting.limits)
    both = {"ours": cost, f"{work.steps} steps": found["ours"]}
    what = f"temporary memory, {longer.steps} steps"
    is_flat = memory("imaml", what, both, [Target("ratio", ">=", 0.95)])
    return [*_rows(setting, work, found, 5), is_flat]


def _rows(
    setting: Setting,
    work: Workload,
    found: dict[str, Measured],
    bound: float,
) -> list[Row]:
    what = f"{work.steps} steps"
    if work.kind == "imaml":
        what += f", CG {work.cg}"
    rows = [
        compared(work.kind, what, found),
        memory(work.kind, f"temporary memory, {what}", found),
    ]
    if setting.peers:
        rows += peers.race(setting, work, RTOL, Target("ratio", ">=", bound))
    return rows


def implicit_cg(setting: Setting) -> list[Row]:
    """The linear solve of one task, against jax.scipy.

    There, products with the Hessian start anew each time.
    """
    work = workload("imaml", setting.smoke)
    params = work.params
    images, labels = (batch[0] for batch in work.batches[:2])
    batch = {"image": images, "label": labels}

    def loss(phi, batch):
        value, _ = work.problem.loss(
            jax.random.key(0),
            phi,
            (),
            batch,
        )
        return value

    objective = mx.implicit.proximal(loss)

    def ours(params, vector, batch):
        system = mx.implicit.inverse_hvp(objective, mx.implicit.cg(work.cg))
        return system(params, vector, params, work.lam, batch).x

    def plain(params, vector, batch):
        gradient = jax.grad(
            lambda phi: objective(
                phi,
                params,
                work.lam,
                batch,
            )
        )

        def product(v):
            return jax.jvp(gradient, (params,), (v,))[1]

        solution, _ = jax.scipy.sparse.linalg.cg(
            product,
            vector,
            tol=0.0,
            maxiter=work.cg,
        )
        return solution

    args = (params, jax.tree.map(_some_vector, params), batch)
    programs = {"ours": Program(ours, args), "jax.scipy": Program(plain, args)}
    found = contest(programs, setting.limits, rtol=RTOL, rounds=setting.rounds)
    return [compared("implicit_cg", f"{work.cg} products on conv-4", found)]


def _some_vector(x: Any) -> Any:
    numbers = jnp.arange(x.size, dtype=x.dtype)
    return jnp.cos(numbers).reshape(x.shape)


def plain_maml(work: Workload, params: Any, *batches: Any) -> Any:
    """Differentiates the unrolled steps, nothing rematerialised."""

    def task_loss(params, x, y, x_query, y_query):
        phi = params
        for _ in range(work.steps):
            gradient = jax.grad(plain_loss)(phi, x, y)
            phi = jax.tree.map(lambda p, g: p - work.rate * g, phi, gradient)
        return plain_loss(phi, x_query, y_query)

    def meta_loss(params):
        losses = jax.vmap(task_loss, (None, 0, 0, 0, 0))
        return losses(params, *batches).mean()

    return jax.grad(meta_loss)(params)


def plain_imaml(work: Workload, params: Any, *batches: Any) -> Any:
    """Descends, then solves ``(I + H / lam) x = grad`` by conjugate gradients."""
    flat, unravel = ravel_pytree(params)

    def loss(phi, x, y):
        return plain_loss(unravel(phi), x, y)

    def task_gradient(x, y, x_query, y_query):
        def gradient(phi):
            return jax.grad(loss)(phi, x, y)

        def descend(_, phi):
            return phi - work.rate * (gradient(phi) + work.lam * (phi - flat))

        def product(phi, p):
            _, curvature = jax.jvp(gradient, (phi,), (p,))
            return p + curvature / work.lam

        phi = jax.lax.fori_loop(0, work.steps, descend, flat)
        right = jax.grad(loss)(phi, x_query, y_query)
        return unravel(_conjugate_gradients(partial(product, phi), right, work.cg))

    gradients = jax.vmap(task_gradient)(*batches)
    return jax.tree.map(lambda g: g.mean(0), gradients)


def _conjugate_gradients(product: Any, right: Any, steps: int) -> Any:
    def body(_, carry):
        x, r, p = carry
        q = product(p)
        a = r @ r / (p @ q)
        new_r = r - a * q
        new_p = new_r + (new_r @ new_r) / (r @ r) * p
        return x + a * p, new_r, new_p

    start = (jnp.zeros_like(right), right, right)
    x, _, _ = jax.lax.fori_loop(0, steps, body, start)
    return x


CASES = (maml, imaml, implicit_cg)
