"""Few-shot learners on conv-4, 5 ways, 1 shot, 5 queries a class, 4 tasks; and the linear solve by
itself.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import metajax as mx
from benchmarks import peers
from benchmarks.measure import Measured, Program, compiled, contest
from benchmarks.table import Row, Setting, Target, compared, memory

PLAIN = "conv_general_dilated under vmap"
RTOL = 1e-3  # ReLU networks in float32 after several steps


class Workload(NamedTuple):
    """A meta-gradient to compute.

    Attributes:
      kind: ``"maml"`` or ``"imaml"``.
      steps: inner gradient steps; ``rate``: of these; ``lam`` and ``cg``: of iMAML.
      problem: conv-4.
      estimator: ours, and the ``args`` of its ``estimate``; the second of these are the parameters.
      batches: what our estimate draws: support images ``[tasks, B, size, size, 1]``, labels, query
        images, labels.
    """

    kind: str
    steps: int
    rate: float
    lam: float
    cg: int
    problem: mx.Problem
    estimator: mx.Estimator
    args: tuple
    batches: tuple[Any, ...]

    def ours(self, *args):
        """The meta-gradient, by ``self.estimator``."""
        return self.estimator.estimate(*args)[0].updates


def workload(kind: str, smoke: bool, steps: int | None = None, remat: bool = True) -> Workload:
    """The same from one process to the next; rematerialised, as `mx.bptt` does if not told
    otherwise.
    """
    steps = steps or (2 if smoke else {"maml": 5, "imaml": 16}[kind])
    ways, num_tasks, size, filters, cg = (3, 2, 28, 4, 2) if smoke else (5, 4, 28, 64, 5)
    # With the published lam of 2 the Hessian of an untrained network is indefinite, and what
    # conjugate gradients then come to is a matter of safeguards and rounding: there is nothing to
    # compare. The cost does not depend on lam.
    rate, lam = (0.1, 0.0) if kind == "maml" else (1e-3, 1e3)
    net = mx.nets.conv4(ways, (size, size, 1), filters)
    problem, tasks = mx.problems.classifier(*net), mx.tasks.episodes(ways, shots=1, queries=5)
    if kind == "imaml":
        learner = mx.imaml(
            problem, mx.implicit.descend(optax.sgd(rate), steps), mx.implicit.cg(cg), lam
        )
    else:
        learner = mx.maml(problem, rate)
    loop = mx.inner(learner, tasks, 1 if kind == "imaml" else steps, meta_loss="heldout")
    # A blurred picture a class, and noise: classes that can be told apart.
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.uniform(0, 200, (20, 1, size // 4, size // 4)), np.ones((4, 4)))
    image = (
        (coarse + rng.uniform(0, 55, (20, 10, size, size)))
        .astype(np.uint8)
        .reshape(-1, size, size, 1)
    )
    data = mx.data.by_class({"image": image, "label": np.repeat(np.arange(20), 10)})
    estimator = mx.bptt(loop, num_tasks, remat=remat)
    key, params = jax.random.key(1), net.init(jax.random.key(0))
    state = jax.jit(estimator.init)(jax.random.key(2), params, data)

    def draw(key):
        task = loop.init(key, params, data).task
        support, query = tasks.train(key, data, task), tasks.test(key, data, task)
        return support["image"], support["label"], query["image"], query["label"]

    batches = jax.jit(jax.vmap(draw))(jax.random.split(key, num_tasks))
    return Workload(
        kind, steps, rate, lam, cg, problem, estimator, (key, params, state, data), batches
    )


def plain_loss(params, x, y):
    """Cross-entropy of conv-4, as one would write it down."""
    for layer in params["body"]:
        kinds = ("NHWC", "HWIO", "NHWC")
        x = (
            jax.lax.conv_general_dilated(x, layer["w"], (2, 2), "SAME", dimension_numbers=kinds)
            + layer["b"]
        )
        x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
        x = jax.nn.relu(x * layer["scale"] + layer["offset"])
    logits = x.reshape(len(x), -1) @ params["head"]["w"] + params["head"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def plain_maml(w: Workload, params, *batches):
    """Differentiates the unrolled steps, nothing rematerialised."""

    def task_loss(params, x, y, x_query, y_query):
        phi = params
        for _ in range(w.steps):
            phi = jax.tree.map(lambda p, g: p - w.rate * g, phi, jax.grad(plain_loss)(phi, x, y))
        return plain_loss(phi, x_query, y_query)

    def meta_loss(params):
        return jax.vmap(task_loss, (None, 0, 0, 0, 0))(params, *batches).mean()

    return jax.grad(meta_loss)(params)


def plain_imaml(w: Workload, params, *batches):
    """Descends, then solves ``(I + H / lam) x = grad`` by conjugate gradients."""

    def task_gradient(x, y, x_query, y_query):
        flat, unravel = ravel_pytree(params)

        def gradient(phi):
            return jax.grad(lambda phi: plain_loss(unravel(phi), x, y))(phi)

        def descend(_, phi):
            return phi - w.rate * (gradient(phi) + w.lam * (phi - flat))

        phi = jax.lax.fori_loop(0, w.steps, descend, flat)
        b = jax.grad(lambda phi: plain_loss(unravel(phi), x_query, y_query))(phi)

        def body(_, carry):
            x, r, p = carry
            q = p + jax.jvp(gradient, (phi,), (p,))[1] / w.lam
            a = r @ r / (p @ q)
            new = r - a * q
            return x + a * p, new, new + (new @ new) / (r @ r) * p

        return unravel(jax.lax.fori_loop(0, w.cg, body, (jnp.zeros_like(b), b, b))[0])

    return jax.tree.map(lambda g: g.mean(0), jax.vmap(task_gradient)(*batches))


def _rows(setting: Setting, w: Workload, found: dict[str, Measured], bound: float) -> list[Row]:
    what = f"{w.steps} steps" + (f", CG {w.cg}" if w.kind == "imaml" else "")
    rows = [compared(w.kind, what, found), memory(w.kind, f"temporary memory, {what}", found)]
    return rows + (
        peers.race(setting, w, RTOL, Target("ratio", ">=", bound)) if setting.peers else []
    )


def maml(setting: Setting) -> list[Row]:
    """A meta-gradient of MAML through the gradient steps, and what rematerialising them costs and
    saves.
    """
    w, kept = workload("maml", setting.smoke), workload("maml", setting.smoke, remat=False)
    programs = {
        "ours": Program(w.ours, w.args),
        PLAIN: Program(partial(plain_maml, w), (w.args[1], *w.batches)),
        "everything kept": Program(kept.ours, kept.args),
    }
    found = contest(programs, setting.limits, rtol=RTOL, rounds=setting.rounds)
    saved = {name: found[name] for name in ("ours", "everything kept")}
    return [
        *_rows(setting, w, {name: found[name] for name in ("ours", PLAIN)}, 2),
        compared("maml", f"{w.steps} steps", saved),
        memory("maml", f"temporary memory, {w.steps} steps", saved),
    ]


def imaml(setting: Setting) -> list[Row]:
    """A meta-gradient of iMAML, and its memory against the number of inner steps."""
    w = workload("imaml", setting.smoke)
    programs = {
        "ours": Program(w.ours, w.args),
        PLAIN: Program(partial(plain_imaml, w), (w.args[1], *w.batches)),
    }
    found = contest(programs, setting.limits, rtol=RTOL, rounds=setting.rounds)
    longer = workload("imaml", setting.smoke, 4 * w.steps)
    _, cost = compiled(Program(longer.ours, longer.args), setting.limits)
    both = {"ours": cost, f"{w.steps} steps": found["ours"]}
    flat = memory(
        "imaml", f"temporary memory, {longer.steps} steps", both, [Target("ratio", ">=", 0.95)]
    )
    return [*_rows(setting, w, found, 5), flat]


def implicit_cg(setting: Setting) -> list[Row]:
    """The linear solve of one task, against jax.scipy and products with the Hessian that start anew
    each time.
    """
    w = workload("imaml", setting.smoke)
    x, y = (b[0] for b in w.batches[:2])
    objective = mx.implicit.proximal(lambda phi, batch: w.problem.loss(None, phi, batch)[0])
    params, batch = w.args[1], {"image": x, "label": y}
    vector = jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )

    def ours(params, vector, batch):
        system = mx.implicit.inverse_hvp(objective, mx.implicit.cg(w.cg))
        return system(params, vector, params, w.lam, batch).x

    def plain(params, vector, batch):
        def product(v):
            return jax.jvp(
                jax.grad(lambda phi: objective(phi, params, w.lam, batch)), (params,), (v,)
            )[1]

        return jax.scipy.sparse.linalg.cg(product, vector, tol=0.0, maxiter=w.cg)[0]

    programs = {
        "ours": Program(ours, (params, vector, batch)),
        "jax.scipy": Program(plain, (params, vector, batch)),
    }
    found = contest(programs, setting.limits, rtol=RTOL, rounds=setting.rounds)
    return [compared("implicit_cg", f"{w.cg} products on conv-4", found)]


CASES = (maml, imaml, implicit_cg)
