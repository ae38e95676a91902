"""Run by test_sharding.py in a process that has four simulated devices; prints what it found as
JSON.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evosax.algorithms import CMA_ES, Open_ES
from jax.sharding import AxisType
from systems import IMAGES

import metajax as mx

KEY = jax.random.key(3)
RATE = jnp.float32(0.01)
FOUND = {}
COMPILED = []


def quadratics(horizon=4, size=3, meta_loss="online"):
    learner = mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True)
    return mx.inner(learner, mx.tasks.quadratics(size), horizon, meta_loss)


def collectives(text):
    """``[kind, elements, in the entry computation]`` of each collective in compiled HLO."""
    out, entry = [], False
    for line in text.splitlines():
        entry = line.startswith("ENTRY") if line.endswith("{") else entry
        found = re.search(
            r"= (.*?) (all-\w+|reduce-scatter|collective-\w+|ragged-\S+)(-start)?\(",
            line,
        )
        if found:
            shapes = re.findall(r"\w\d*\[([\d,]*)\]", found[1])
            out.append(
                [
                    found[2],
                    int(
                        sum(
                            np.prod([int(d) for d in s.split(",") if d]) for s in shapes
                        )
                    ),
                    entry,
                ]
            )
    return out


def numbers(tree):
    leaves = jax.tree.leaves(tree)
    keyless = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in leaves
    ]
    return [np.asarray(x, np.float64) for x in keyless]


def difference(a, b):
    """The largest difference, relative to the size of the leaf it is in."""
    pairs = zip(numbers(a), numbers(b), strict=True)
    return max(
        float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-6)) for x, y in pairs
    )


def trained(name, inner, make, meta_params, data=(), devices=(4,), shapes=None):
    """Three meta-steps on one device and on several: the numbers, and the compiled program of the
    latter.
    """

    def run(inner, place):
        trainer = mx.trainer(make(inner), optax.adam(1e-2))
        state, data_ = place(trainer.init(KEY, meta_params, data)), place(data)
        step, history = jax.jit(trainer.step).lower(state, data_).compile(), []
        for _ in range(3):
            state, metrics = step(state, data_)
            history.append(metrics)
        return state, history, step.as_text()

    want = run(inner, lambda tree: tree)
    for n in devices:
        mesh = mx.sharding.mesh(n)
        state, history, text = run(
            mx.sharding.split(inner, mesh),
            lambda tree, mesh=mesh: mx.sharding.place(tree, mesh),
        )
        FOUND["trained"][f"{name}, {n} devices"] = {
            "difference": difference(want[:2], (state, history)),
            "collectives": collectives(text),
            "whole": shapes is not None and f"f32[{shapes[0]}]" in text,
            "share": shapes is None or f"f32[{shapes[1]}]" in text,
            "specs": sorted(
                {str(x.sharding.spec) for x in jax.tree.leaves(state.estimator)}
            ),
        }


def train_all():
    FOUND["trained"] = {}
    mlp = mx.inner(
        mx.l2l(optax.sgd, mx.problems.mlp((4, 3))),
        mx.tasks.minibatches(5),
        2,
        "heldout",
    )
    trained(
        "bptt",
        mlp,
        lambda inner: mx.bptt(inner, 8),
        RATE,
        IMAGES,
        (4,),
        ("8,4,3", "2,4,3"),
    )
    shapes = ("8,3,3", "2,3,3")
    trained(
        "truncated",
        quadratics(),
        lambda inner: mx.bptt(inner, 8, 2, stagger=True),
        RATE,
        (),
        (4,),
        shapes,
    )
    trained(
        "binomial",
        quadratics(),
        lambda inner: mx.bptt(inner, 8, remat=2),
        RATE,
        (),
        (4,),
        shapes,
    )
    trained(
        "pes",
        quadratics(),
        lambda inner: mx.pes(inner, 8, 0.001, 2),
        RATE,
        (),
        (4,),
        shapes,
    )
    trained(
        "forward",
        quadratics(),
        lambda inner: mx.forward(inner, 8),
        RATE,
        (),
        (4,),
        shapes,
    )
    many, m = many_rates()
    es, shapes = CMA_ES(8, solution=m), ("8,3,3", "2,3,3")
    trained(
        "members", many, lambda inner: mx.ask_tell(inner, es, 3), m, (), (4,), shapes
    )


def many_rates():
    """Five meta-parameters, so that the sizes of members, tasks and scores differ."""
    learner = mx.l2l(lambda m: optax.sgd(m.mean()), mx.problems.quadratic())
    return mx.inner(learner, mx.tasks.quadratics(3), 4), jnp.full(5, 0.01)


def fit():
    """The state comes back placed as it went in: the second call compiles nothing. And a checkpoint
    of the first goes on on two devices."""

    def trainer_and_state(mesh):
        estimator = mx.bptt(mx.sharding.split(quadratics(), mesh), 8)
        trainer = mx.trainer(estimator, optax.adam(1e-2), chunk=2)
        return trainer, mx.sharding.place(trainer.init(KEY, RATE), mesh)

    with tempfile.TemporaryDirectory() as folder:
        trainer, state = trainer_and_state(mx.sharding.mesh())
        before = len(COMPILED)
        store = mx.checkpoints(folder)
        state, *_ = mx.fit(trainer, state, num_steps=3, progress=None, checkpoint=store)
        first = len(COMPILED)
        state, *_ = mx.fit(trainer, state, num_steps=6, progress=None)
        FOUND["fit"] = {
            "first": first - before,
            "second": len(COMPILED) - first,
            "step": int(state.step),
        }
        trainer, placed = trainer_and_state(mx.sharding.mesh(2))
        rows = []
        result = mx.fit(
            trainer,
            placed,
            num_steps=6,
            progress=None,
            checkpoint=store,
            callbacks=[rows.extend],
        )
    FOUND["fewer devices"] = {
        "difference": difference(state, result.state),
        "trained": [row["step"] for row in rows],
        "devices": len(result.state.estimator.t.sharding.device_set),
    }


def evaluate():
    inner, mesh = quadratics(), mx.sharding.mesh()
    split = mx.sharding.split(inner, mesh)
    want = mx.evaluate(inner, KEY, RATE, num_tasks=8, steps=6)
    got = mx.evaluate(split, KEY, RATE, num_tasks=8, steps=6)
    evaluated = jax.jit(
        lambda key, m: mx.evaluate(split, key, m, num_tasks=8, steps=6)
    ).lower(KEY, RATE)
    FOUND["evaluate"] = {
        "difference": difference(want, got),
        "collectives": collectives(evaluated.compile().as_text()),
        "spec": str(got.loss.sharding.spec),
        "gathered": difference(want, mx.sharding.gather(got)),
        "in turns": difference(
            want, mx.evaluate(split, KEY, RATE, num_tasks=8, steps=6, at_once=1)
        ),
    }


def there_and_back():
    """Placed on four devices, gathered, placed on two, gathered: bit for bit."""
    trainer = mx.trainer(mx.bptt(quadratics(), 8), optax.adam(1e-2))
    state = trainer.init(KEY, RATE)
    again = state
    for n in (4, 2):
        again = mx.sharding.gather(mx.sharding.place(again, mx.sharding.mesh(n)))
    FOUND["there and back"] = {
        "equal": all(
            np.array_equal(x, y)
            for x, y in zip(numbers(state), numbers(again), strict=True)
        ),
        "one device": all(
            len(x.sharding.device_set) == 1 for x in jax.tree.leaves(again)
        ),
        "same types": [str(x.dtype) for x in jax.tree.leaves(state)]
        == [str(x.dtype) for x in jax.tree.leaves(again)],
    }


def mistakes():
    inner, mesh = quadratics(), mx.sharding.mesh()
    explicit = jax.make_mesh((4,), ("tasks",), axis_types=(AxisType.Explicit,))
    loop = mx.sharding.split(inner, mesh)
    many, m = many_rates()
    members = mx.trainer(
        mx.ask_tell(mx.sharding.split(many, mesh), Open_ES(6, solution=m), 3),
        optax.sgd(1.0),
    )
    two = mx.sharding.mesh(2)
    trainer = mx.trainer(mx.bptt(loop, 8), optax.sgd(0.1))
    elsewhere = mx.sharding.place(trainer.init(KEY, RATE), two)
    six = mx.bptt(inner, 6).init(KEY, RATE, ())
    cases = {
        "tasks": lambda: mx.trainer(mx.bptt(loop, 6), optax.sgd(0.1)).init(KEY, RATE),
        "evaluate": lambda: mx.evaluate(loop, KEY, RATE, num_tasks=6),
        "members": lambda: jax.jit(members.step)(members.init(KEY, m)),
        "place": lambda: mx.sharding.place(six, mesh),
        "devices": lambda: mx.sharding.mesh(5),
        "explicit": lambda: mx.sharding.split(inner, explicit),
        "another mesh": lambda: mx.fit(trainer, elsewhere, num_steps=1, progress=None),
        "another mesh, eagerly": lambda: trainer.step(elsewhere),
    }
    FOUND["mistakes"] = {}
    for name, case in cases.items():
        try:
            case()
            FOUND["mistakes"][name] = ["nothing", ""]
        except Exception as e:
            FOUND["mistakes"][name] = [type(e).__name__, str(e)]


def document(path):
    """Runs the examples for one host in one namespace, as a reader would."""
    blocks = re.findall(r"```python\n(.*?)```", Path(path).read_text(), re.DOTALL)
    namespace = {}
    for block in blocks:
        if "initialize(" not in block:
            exec(compile(block, str(path), "exec"), namespace)
    FOUND["document"] = {
        "blocks": len(blocks),
        "sharding": str(namespace["state"].estimator.t.sharding.spec),
    }


if __name__ == "__main__":
    assert jax.device_count() == 4
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: (
            COMPILED.append(event)
            if event.endswith("backend_compile_duration")
            else None
        )
    )
    for part in (train_all, fit, evaluate, there_and_back, mistakes):
        part()
    document(sys.argv[1])
    print(json.dumps(FOUND))
