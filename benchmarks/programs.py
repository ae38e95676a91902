"""What each system's users run on an accelerator: forward, and a meta-step.

As functions of shapes alone, so that nothing large is made to compile them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax as mx
from benchmarks.cases import low_rank as low_rank_case
from benchmarks.cases.evolution import STD, population
from benchmarks.workloads import workload
from metajax.cells._lstm import _step_of_one_kernel as one_kernel
from metajax.optim._lstm_kernel import pallas_step


class Step(NamedTuple):
    """A program to compile: ``f(*args)``, where arrays may be shapes.

    Attributes:
      what: it does.
      f: the program.
      args: its arguments.
      where: they lie, as ``in_shardings`` of `jax.jit`; all on one device by default.
      donated: the places of arguments whose memory the results may have.
      only: the target that alone can compile it, None if all can.
    """

    what: str
    f: Callable[..., Any]
    args: tuple
    where: Any = None
    donated: tuple[int, ...] = ()
    only: str | None = None


def l2l(smoke: bool) -> Iterator[Step]:
    """The LSTM optimizer: an update of all coordinates, and backpropagation through an episode."""
    optimizer = mx.optim.lstm()
    meta_params = jax.eval_shape(optimizer.init, jax.random.key(0))

    def update(meta_params, grads, state):
        return optimizer.tx(meta_params).update(grads, state)

    def init(meta_params, grads):
        return optimizer.tx(meta_params).init(grads)

    for size in (200,) if smoke else (16_000, 1_000_000):
        for leaves in (1, 4 if smoke else 200):
            grads = [jax.ShapeDtypeStruct((size // leaves,), jnp.float32)] * leaves
            state = jax.eval_shape(init, meta_params, grads)
            noun = "leaf" if leaves == 1 else "leaves"
            what = f"update, {size:,} coordinates, {leaves} {noun}"
            yield Step(what, update, (meta_params, grads, state))

    # The last of these in one kernel, which `mx.optim.lstm` makes only where there is a GPU.
    flat = jax.ShapeDtypeStruct((size,), jnp.float32)
    what = f"update, {size:,} coordinates, kernel='pallas'"
    step = partial(pallas_step, 10.0, False)
    args = (meta_params, flat, state)
    yield Step(what, step, args, donated=(2,), only="h100")

    sizes, steps = ((64, 3, 10), 3) if smoke else ((64, 20, 10), 20)
    problem = mx.problems.mlp(sizes)
    tasks = mx.tasks.minibatches(8 if smoke else 128)
    loop = mx.inner(mx.l2l(optimizer, problem), tasks, steps)
    num_tasks = 2 if smoke else 16
    what = f"BPTT, {num_tasks} tasks x {steps} steps, {sizes} units"
    data = mx.data.load("digits")
    yield meta_step(what, mx.bptt(loop, num_tasks), meta_params, data)


def vsml(smoke: bool) -> Iterator[Step]:
    """VSML, one layer and two: episodes forward, by evolution and backpropagated through."""
    steps = 3 if smoke else 20
    tasks = 2 if smoke else 16
    pairs = 2 if smoke else 256
    for sizes in ((9, 3), (9, 2, 3)) if smoke else ((784, 10), (196, 32, 10)):
        learner = mx.vsml(sizes)
        loop = mx.inner(learner, mx.tasks.minibatches(1), steps)
        meta_params = jax.eval_shape(learner.meta, jax.random.key(1))
        data = _images(int(sizes[0] ** 0.5), sizes[-1])
        net = " x ".join(map(str, sizes))
        many = f"{tasks} x {steps} examples"
        yield forward(f"forward, {net}, {many}", loop, tasks, meta_params, data)
        by_evolution = mx.es(loop, pairs, 0.05)
        what = f"ES, {net}, {2 * pairs} x {steps} examples"
        yield meta_step(what, by_evolution, meta_params, data)
        learner = mx.vsml(sizes, _cell_of_one_kernel())
        loop_of_kernels = mx.inner(learner, mx.tasks.minibatches(1), steps)
        by_evolution = mx.es(loop_of_kernels, pairs, 0.05)
        step = meta_step(what + ", kernel='pallas'", by_evolution, meta_params, data)
        yield step._replace(only="h100")
        yield meta_step(f"BPTT, {net}, {many}", mx.bptt(loop, tasks), meta_params, data)


def _cell_of_one_kernel() -> mx.cells.Cell:
    """What ``kernel="pallas"`` makes, where there is a GPU."""
    cell = mx.cells.lstm()

    def step(params, *rest):
        return one_kernel(2, False, params["gates"], *rest)

    return cell._replace(step=step)


def maml(smoke: bool) -> Iterator[Step]:
    """MAML on conv-4, 5 and 20 ways: adaptation, and a meta-step through 5 steps."""
    yield from _few_shot("maml", smoke)


def imaml(smoke: bool) -> Iterator[Step]:
    """IMAML on conv-4, 5 and 20 ways: adaptation by 16 steps, and a meta-step by CG."""
    yield from _few_shot("imaml", smoke)


def _few_shot(kind: str, smoke: bool) -> Iterator[Step]:
    for ways in (3,) if smoke else (5, 20):
        work = workload(kind, smoke, ways=ways)
        _, meta_params, _, data = work.args
        tasks = len(work.batches[0])
        size = f"{ways} ways, {tasks} tasks x {work.steps} steps"
        yield forward(f"adaptation, {size}", work.loop, tasks, meta_params, data)
        yield Step(f"meta-step, {size}", work.ours, work.args)


def pes(smoke: bool) -> Iterator[Step]:
    """Persistent evolution strategies: a window of learned optimizers, half an episode."""
    loop, pairs, meta_params, data = population(smoke)
    window = 2 if smoke else 10
    estimator = mx.pes(loop, pairs, STD, window)
    what = f"meta-step, {pairs} pairs x {window} steps"
    yield meta_step(what, estimator, meta_params, data)


def remat(smoke: bool) -> Iterator[Step]:
    """What backpropagation keeps of many steps: MAML on conv-4."""
    steps = 4 if smoke else 64
    for kept in (True, "nested", 2 if smoke else 6):
        work = workload("maml", smoke, steps, kept)
        tasks = len(work.batches[0])
        what = f"meta-step, {tasks} tasks x {steps} steps, remat={kept!r}"
        yield Step(what, work.ours, work.args)


def low_rank(smoke: bool) -> Iterator[Step]:
    """Evolution of a start for MAML with a million meta-parameters, by full noise and rank 1."""
    sizes = (64, 5, 10) if smoke else low_rank_case.MAML_SIZES[-1]
    pairs = 2 if smoke else 128
    loop, pairs, meta_params, data = low_rank_case.maml_start(sizes, pairs)
    num = sum(x.size for x in jax.tree.leaves(meta_params))
    members = f"ES, {2 * pairs} members of {num:,}"
    full = mx.es(loop, pairs, low_rank_case.STD)
    yield meta_step(f"{members}, full noise", full, meta_params, data)
    for at_once in (1, pairs // 8 or 2):
        turns = mx.sharding.in_turns(loop, at_once)
        low = mx.es(turns, pairs, low_rank_case.STD, mx.low_rank())
        what = f"{members}, rank 1, {at_once} of {pairs} pairs at once"
        yield meta_step(what, low, meta_params, data)


def meta_step(what: str, estimator: mx.Estimator, meta_params: Any, data: Any) -> Step:
    """The meta-gradient by an estimator."""

    def run(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.updates

    key = jax.random.key(2)
    state = jax.eval_shape(estimator.init, jax.random.key(3), meta_params, data)
    return Step(what, run, (key, meta_params, state, data))


def forward(
    what: str, loop: mx.Inner, num_tasks: int, meta_params: Any, data: Any
) -> Step:
    """Whole episodes side by side, and the mean of their meta-losses."""

    def run(key, meta_params, data):
        def episode(key):
            start = loop.init(key, meta_params, data)
            _, loss, _ = mx.unroll(loop, meta_params, start, data, loop.horizon)
            return loss

        return jax.vmap(episode)(jax.random.split(key, num_tasks)).mean()

    return Step(what, run, (jax.random.key(2), meta_params, data))


def _images(side: int, classes: int) -> Any:
    image = np.zeros((50, side, side, 1), np.uint8)
    return {"image": image, "label": np.arange(50, dtype=np.int32) % classes}


PROGRAMS = {
    case.__name__: case for case in (l2l, vsml, maml, imaml, pes, remat, low_rank)
}
