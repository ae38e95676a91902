"""VSML against the form one would write down from the paper.

That is two nested vmaps over cells with whole messages.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.measure import Measured, Program, contest
from benchmarks.table import Row, Setting, Target, compared, memory

SLOTS = 8


def plain_cell(
    params: Any,
    c: Any,
    h: Any,
    up: Any,
    down: Any,
) -> tuple[Any, Any]:
    """Two ticks of one cell: ``c`` and ``h`` ``[16]``, messages ``[8]``."""
    gates = params["gates"]
    w = jnp.concatenate([gates["forward"], gates["backward"], gates["hidden"]])
    for _ in range(2):
        inputs = jnp.concatenate([up, down, h])
        i, g, f, o = jnp.split(inputs @ w + gates["b"], 4)
        kept = jax.nn.sigmoid(f + 5) * c
        c = kept + jax.nn.sigmoid(i - 5) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return c, h


def plain_tick(
    params: Any,
    c: Any,
    h: Any,
    x: Any,
    error: Any,
) -> tuple[Any, Any, Any]:
    """All cells ``[A, B]`` on inputs ``[A]`` and errors ``[B]``.

    Returns the states and the messages upwards, ``[B, 8]``.
    """
    up = jnp.zeros((len(x), SLOTS)).at[:, 0].set(x)
    down = jnp.zeros((len(error), SLOTS)).at[:, 0].set(error)
    row = jax.vmap(plain_cell, (None, 0, 0, None, 0))
    grid = jax.vmap(row, (None, 0, 0, 0, None))
    c, h = grid(params, c, h, up, down)

    def message(h):
        return h @ params["forward"]["w"] + params["forward"]["b"]

    messages = jax.vmap(jax.vmap(message))(h)
    return c, h, messages.mean(0)


def vsml_tick(setting: Setting) -> list[Row]:
    """The two micro-ticks that an example takes, and the messages upwards."""
    inputs = 12 if setting.smoke else 784
    outputs = 3 if setting.smoke else 10
    cell = mx.cells.lstm()
    params = cell.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    c, h = rng.normal(size=(2, inputs, outputs, 16)).astype(np.float32)
    x = rng.normal(size=inputs).astype(np.float32)
    error = rng.normal(size=outputs).astype(np.float32)

    def ours(params, c, h, x, error):
        upward = x[:, None]
        downward = error[:, None]
        state = cell.step(params, (c, h), upward, downward)
        return *state, cell.forward(params, state, 2)

    def first_two_slots(result):
        c, h, messages = result
        return c, h, messages[:, :2]

    args = (params, c, h, x, error)
    programs = {
        "ours": Program(ours, args),
        "nested vmap": Program(plain_tick, args, first_two_slots),
    }
    found = contest(programs, setting.limits, rounds=setting.rounds)
    what = f"{inputs} x {outputs} cells"
    return [
        compared(
            "vsml_tick",
            what,
            found,
            targets=[Target("ratio", ">=", 2)],
        )
    ]


def vsml_episode(setting: Setting) -> list[Row]:
    """Online learning over an episode: forward, and the gradient through time."""
    smoke = setting.smoke
    side = 3 if smoke else 28
    classes = 3 if smoke else 10
    steps = 4 if smoke else 100
    num_tasks = 2 if smoke else 1
    loop, meta_params, data = _episodes(side, classes, steps)
    estimator = mx.bptt(loop, num_tasks)
    key = jax.random.key(2)
    state = estimator.init(jax.random.key(3), meta_params, data)

    def mean_loss(episode, key, meta_params, data):
        keys = jax.random.split(key, num_tasks)
        starts = jax.vmap(loop.init, (0, None, None))(keys, meta_params, data)
        losses = jax.vmap(episode, (None, 0, None))(meta_params, starts, data)
        return losses.mean()

    def forward_episode(meta_params, start, data):
        _, loss, _ = mx.unroll(loop, meta_params, start, data, steps)
        return loss

    forward = partial(mean_loss, forward_episode)
    plain = partial(mean_loss, partial(plain_episode, steps))

    def backward(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.loss, estimate.updates

    args = (key, meta_params, data)
    upwards = {
        "ours": Program(forward, args),
        "nested vmap": Program(plain, args),
    }
    downwards = {
        "ours": Program(backward, (key, meta_params, state, data)),
        "nested vmap": Program(jax.value_and_grad(plain, 1), args),
    }
    up = contest(upwards, setting.limits, rounds=setting.rounds)
    down = contest(downwards, setting.limits, rounds=setting.rounds)

    what = f"{num_tasks} x {steps} examples, {side * side} x {classes} cells"
    rows = _episode_rows(what, up, down)
    if jax.default_backend() != "cpu":
        rows.append(_published(setting))
    return rows


def _episode_rows(
    what: str,
    up: dict[str, Measured],
    down: dict[str, Measured],
) -> list[Row]:
    twice = [Target("ratio", ">=", 2)]
    down_over_up = Row(
        "vsml_episode",
        "BPTT over forward",
        "x",
        ours=down["ours"].seconds / up["ours"].seconds,
        targets=(Target("ours", "<=", 4),),
    )
    return [
        compared("vsml_episode", f"forward, {what}", up, targets=twice),
        compared("vsml_episode", f"BPTT, {what}", down, targets=twice),
        memory("vsml_episode", f"temporary memory of BPTT, {what}", down),
        down_over_up,
    ]


def plain_episode(
    steps: int,
    meta_params: Any,
    start: mx.InnerState,
    data: Any,
) -> Any:
    """The mean loss of an episode, one example a step."""
    tasks = mx.tasks.minibatches(1)
    c, h = start.learner.cells[0]
    classes = c.shape[3]

    def step(carry, t):
        c, h, error = carry
        k_data, _ = jax.random.split(jax.random.fold_in(start.key, t))
        batch = tasks.train(k_data, data, ())
        label = batch["label"][0]
        x = batch["image"].reshape(-1)
        c, h, messages = plain_tick(meta_params, c, h, x, error)
        logits = 100 * jnp.tanh(messages[:, 1] / 100)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        error = jax.nn.softmax(logits) - jax.nn.one_hot(label, classes)
        return (c, h, error), loss

    beginning = (c[0, 0], h[0, 0], jnp.zeros(classes))
    _, losses = jax.lax.scan(step, beginning, jnp.arange(steps))
    return losses.mean()


def _published(setting: Setting) -> Row:
    """The published ES meta-step: 2,048 rollouts of 500 examples on 784 x 10 cells."""
    pairs = 2 if setting.smoke else 1024
    side = 3 if setting.smoke else 28
    steps = 4 if setting.smoke else 500
    loop, meta_params, data = _episodes(side, 10, steps)
    estimator = mx.es(loop, pairs, 0.05)
    state = jax.jit(estimator.init)(jax.random.key(3), meta_params, data)

    def ours(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.updates

    program = Program(ours, (jax.random.key(4), meta_params, state, data))
    found = contest({"ours": program}, setting.limits, rounds=setting.rounds)
    what = f"ES meta-step, {2 * pairs} x {steps} examples, {side**2} x 10 cells"
    return compared("vsml_episode", what, found)


def _episodes(side: int, classes: int, steps: int) -> tuple[mx.Inner, Any, Any]:
    """An inner loop on images of noise, its meta-parameters and the images."""
    learner = mx.vsml((side * side, classes))
    loop = mx.inner(learner, mx.tasks.minibatches(1), steps)
    shape = (50, side, side, 1)
    image = np.random.default_rng(0).integers(
        0,
        256,
        shape,
        np.uint8,
    )
    data = {"image": image, "label": np.arange(50, dtype=np.int32) % classes}
    return loop, learner.meta(jax.random.key(1)), data


CASES = (vsml_tick, vsml_episode)
