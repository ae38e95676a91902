"""The meta-gradients of few-shot learners that contenders compute."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx

# With the published lam of 2 the Hessian of an untrained network is indefinite, and what conjugate
# gradients then come to is a matter of safeguards and rounding: there is nothing to compare. The
# cost does not depend on lam.
LAM = 1e3


class Workload(NamedTuple):
    """A meta-gradient to compute: conv-4, 5 ways by default, 1 shot, 5 queries a class, 4 tasks.

    Attributes:
      kind: ``"maml"`` or ``"imaml"``.
      steps: inner gradient steps.
      rate: of these.
      lam: of iMAML.
      cg: steps of conjugate gradients, of iMAML.
      problem: conv-4.
      loop: of a learner of that kind.
      estimator: ours.
      args: of its ``estimate``; the second of these are the parameters.
      batches: what our estimate draws: support images ``[tasks, B, size, size, 1]``, labels, query
        images, labels.
    """

    kind: str
    steps: int
    rate: float
    lam: float
    cg: int
    problem: mx.Problem
    loop: mx.Inner
    estimator: mx.Estimator
    args: tuple
    batches: tuple[Any, ...]

    @property
    def params(self) -> Any:
        """What the meta-gradient is of."""
        return self.args[1]

    def ours(self, *args: Any) -> Any:
        """The meta-gradient, by ``self.estimator``."""
        estimate, _ = self.estimator.estimate(*args)
        return estimate.updates


class _Size(NamedTuple):
    """How large a workload is; ``side`` is the height and width of an image."""

    ways: int = 5
    num_tasks: int = 4
    side: int = 28
    filters: int = 64
    cg: int = 5


_SMOKE = _Size(
    ways=3,
    num_tasks=2,
    filters=4,
    cg=2,
)


def workload(
    kind: str,
    smoke: bool,
    steps: int | None = None,
    remat: Any = True,
    ways: int | None = None,
) -> Workload:
    """The same from one process to the next.

    Rematerialised, as `mx.bptt` does if not told otherwise.
    """
    size = _SMOKE if smoke else _Size()
    if ways is not None:
        size = size._replace(ways=ways)
    if steps is None:
        steps = 2 if smoke else {"maml": 5, "imaml": 16}[kind]
    shape = (size.side, size.side, 1)
    net = mx.nets.conv4(size.ways, shape, size.filters)
    problem = mx.problems.classifier(*net)
    if kind == "imaml":
        rate = 1e-3
        solver = mx.implicit.descend(optax.sgd(rate), steps)
        learner = mx.imaml(problem, solver, mx.implicit.cg(size.cg), LAM)
        horizon = 1
    else:
        rate = 0.1
        learner = mx.maml(problem, rate)
        horizon = steps

    tasks = mx.tasks.episodes(size.ways, shots=1, queries=5)
    loop = mx.inner(learner, tasks, horizon, meta_loss="heldout")
    estimator = mx.bptt(loop, size.num_tasks, remat=remat)
    data = _blurred_classes(size.side)
    key = jax.random.key(1)
    params = learner.meta(jax.random.key(0))
    state = jax.jit(estimator.init)(jax.random.key(2), params, data)

    @jax.jit
    @jax.vmap
    def draw(key):
        task = loop.init(key, params, data).task
        support = tasks.train(key, data, task)
        query = tasks.test(key, data, task)
        return support["image"], support["label"], query["image"], query["label"]

    batches = draw(jax.random.split(key, size.num_tasks))
    args = (key, params, state, data)
    return Workload(
        kind,
        steps,
        rate,
        LAM,
        size.cg,
        problem,
        loop,
        estimator,
        args,
        batches,
    )


def _blurred_classes(side: int) -> Any:
    """A blurred picture a class, and noise: classes that can be told apart."""
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 200, (20, 1, side // 4, side // 4))
    blurred = np.kron(small, np.ones((4, 4)))
    noise = rng.uniform(0, 55, (20, 10, side, side))
    image = (
        (blurred + noise)
        .astype(np.uint8)
        .reshape(
            -1,
            side,
            side,
            1,
        )
    )
    label = np.repeat(np.arange(20), 10)
    return mx.data.by_class({"image": image, "label": label})


def plain_loss(params: Any, x: Any, y: Any) -> Any:
    """Cross-entropy of conv-4, as one would write it down."""
    for layer in params["body"]:
        x = jax.lax.conv_general_dilated(
            x, layer["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x + layer["b"]
        mean = x.mean((0, 1, 2))
        deviation = jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
        x = (x - mean) / deviation
        x = jax.nn.relu(x * layer["scale"] + layer["offset"])
    head = params["head"]
    logits = x.reshape(len(x), -1) @ head["w"] + head["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
