"""VSML against the form one would write down from the paper: two nested vmaps over cells with whole
messages.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from benchmarks.measure import Program, contest
from benchmarks.table import Row, Setting, Target, compared, memory

SLOTS = 8


def plain_cell(params, c, h, up, down):
    """Two ticks of one cell: ``c`` and ``h`` ``[16]``, messages ``[8]``."""
    gates = params["gates"]
    w = jnp.concatenate([gates["forward"], gates["backward"], gates["hidden"]])
    for _ in range(2):
        i, g, f, o = jnp.split(jnp.concatenate([up, down, h]) @ w + gates["b"], 4)
        c = jax.nn.sigmoid(f + 5) * c + jax.nn.sigmoid(i - 5) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return c, h


def plain_tick(params, c, h, x, error):
    """All cells ``[A, B]`` on inputs ``[A]`` and errors ``[B]``: states and the messages upwards,
    ``[B, 8]``.
    """
    up, down = (jnp.zeros((len(m), SLOTS)).at[:, 0].set(m) for m in (x, error))
    row = jax.vmap(plain_cell, (None, 0, 0, None, 0))
    c, h = jax.vmap(row, (None, 0, 0, 0, None))(params, c, h, up, down)
    linear = params["forward"]
    messages = jax.vmap(jax.vmap(lambda h: h @ linear["w"] + linear["b"]))(h)
    return c, h, messages.mean(0)


def vsml_tick(setting: Setting) -> list[Row]:
    """The two micro-ticks that an example takes, and the messages upwards."""
    inputs, outputs = (12, 3) if setting.smoke else (784, 10)
    cell = mx.cells.lstm()
    params = cell.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    c, h = rng.normal(size=(2, inputs, outputs, 16)).astype(np.float32)
    x, error = (rng.normal(size=n).astype(np.float32) for n in (inputs, outputs))

    def ours(params, c, h, x, error):
        state = cell.step(params, (c, h), x[:, None], error[:, None])
        return *state, cell.forward(params, state, 2)

    args = params, c, h, x, error
    programs = {
        "ours": Program(ours, args),
        "nested vmap": Program(plain_tick, args, lambda r: (*r[:2], r[2][:, :2])),
    }
    found = contest(programs, setting.limits, rounds=setting.rounds)
    return [
        compared(
            "vsml_tick", f"{inputs} x {outputs} cells", found, targets=[Target("ratio", ">=", 2)]
        )
    ]


def vsml_episode(setting: Setting) -> list[Row]:
    """Online learning over an episode: forward, and the gradient by backpropagation through
    time.
    """
    side, classes, steps, num_tasks = (3, 3, 4, 2) if setting.smoke else (28, 10, 100, 1)
    loop, meta_params, data = _episodes(side, classes, steps)
    tasks = mx.tasks.minibatches(1)
    key = jax.random.key(2)
    estimator = mx.bptt(loop, num_tasks)
    state = estimator.init(jax.random.key(3), meta_params, data)

    def episodes(key, meta_params, data):
        return jax.vmap(loop.init, (0, None, None))(
            jax.random.split(key, num_tasks), meta_params, data
        )

    def forward(key, meta_params, data):
        def episode(start):
            return mx.unroll(loop, meta_params, start, data, steps)[1]

        return jax.vmap(episode)(episodes(key, meta_params, data)).mean()

    def backward(key, meta_params, state, data):
        estimate, _ = estimator.estimate(key, meta_params, state, data)
        return estimate.loss, estimate.updates

    def plain(key, meta_params, data):
        def episode(start):
            def step(carry, t):
                batch = tasks.train(
                    jax.random.split(jax.random.fold_in(start.key, t))[0], data, (), t
                )
                c, h, error = carry
                c, h, messages = plain_tick(meta_params, c, h, batch["image"].reshape(-1), error)
                logits = 100 * jnp.tanh(messages[:, 1] / 100)
                loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"][0])
                return (
                    c,
                    h,
                    jax.nn.softmax(logits) - jax.nn.one_hot(batch["label"][0], classes),
                ), loss

            c, h = start.learner.cells[0]
            return jax.lax.scan(step, (c[0, 0], h[0, 0], jnp.zeros(classes)), jnp.arange(steps))[
                1
            ].mean()

        return jax.vmap(episode)(episodes(key, meta_params, data)).mean()

    args = key, meta_params, data
    what = f"{num_tasks} x {steps} examples, {side * side} x {classes} cells"
    up = {"ours": Program(forward, args), "nested vmap": Program(plain, args)}
    up = contest(up, setting.limits, rounds=setting.rounds)
    down = {
        "ours": Program(backward, (key, meta_params, state, data)),
        "nested vmap": Program(jax.value_and_grad(plain, 1), args),
    }
    down = contest(down, setting.limits, rounds=setting.rounds)
    twice, over = [Target("ratio", ">=", 2)], down["ours"].seconds / up["ours"].seconds
    rows = [
        compared("vsml_episode", f"forward, {what}", up, targets=twice),
        compared("vsml_episode", f"BPTT, {what}", down, targets=twice),
        memory("vsml_episode", f"temporary memory of BPTT, {what}", down),
        Row("vsml_episode", "BPTT over forward", "x", over, targets=(Target("ours", "<=", 4),)),
    ]
    if jax.default_backend() != "cpu":
        rows.append(_published(setting))
    return rows


def _published(setting: Setting) -> Row:
    """The published ES meta-step: 2,048 rollouts of 500 examples on 784 x 10 cells."""
    pairs, side, steps = (2, 3, 4) if setting.smoke else (1024, 28, 500)
    loop, meta_params, data = _episodes(side, 10, steps)
    estimator = mx.es(loop, pairs, 0.05)
    state = jax.jit(estimator.init)(jax.random.key(3), meta_params, data)

    def ours(key, meta_params, state, data):
        return estimator.estimate(key, meta_params, state, data)[0].updates

    found = contest(
        {"ours": Program(ours, (jax.random.key(4), meta_params, state, data))},
        setting.limits,
        rounds=setting.rounds,
    )
    return compared(
        "vsml_episode", f"ES meta-step, {2 * pairs} x {steps} examples, {side**2} x 10 cells", found
    )


def _episodes(side: int, classes: int, steps: int):
    net = mx.vsml((side * side, classes))
    loop = mx.inner(net, mx.tasks.minibatches(1), steps)
    image = np.random.default_rng(0).integers(0, 256, (50, side, side, 1), np.uint8)
    data = {"image": image, "label": np.arange(50, dtype=np.int32) % classes}
    return loop, net.meta(jax.random.key(1)), data


CASES = (vsml_tick, vsml_episode)
