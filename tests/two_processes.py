"""Run by test_sharding.py in each of two processes: the document's script, then what hosts must
agree on, as JSON.
"""

import json
import runpy
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import runs

import metajax as mx
from metajax.sharding import _hosts as hosts
from metajax.training import _snapshot

FOLDER = Path(sys.argv[1]).parent
FOUND = {}


def run(name, trainer, num_steps=6, **options):
    state = trainer.init(jax.random.key(0), jnp.float32(0))
    store = mx.checkpoints(FOLDER / name, every=2)
    return mx.fit(
        trainer, state, num_steps=num_steps, checkpoint=store, progress=None, **options
    )


def error(f):
    try:
        f()
    except Exception as e:
        return [type(e).__name__, str(e)]


def no():
    raise ValueError("no")


def stopped_early(me):
    """Validation losses that differ between the hosts, as those of different hardware may."""
    losses = iter([3.0, 1.0, 2.0, 2.0] if me == 0 else [3.0, 2.0, 1.0, 0.5])
    validate = mx.validation(
        lambda *_: jnp.float32(next(losses)), jax.random.key(1), every=2, patience=2
    )
    result = run(
        "early", runs.counter(chunk=2), 20, validate=validate, callbacks=[reported]
    )
    return [x.tolist() for x in result.validation.values()]


def reported(rows):
    FOUND["reported"] += [row["step"] for row in rows]


def not_finite():
    def metrics(step):
        return {"loss": 1.0 / step, "skipped": jnp.maximum(step - 2, 0)}

    skipping = runs.counter(metrics, chunk=2, max_skipped=4)
    return error(lambda: run("infinite", skipping, 20))[1]


def damaged():
    """The first host finds the newest checkpoint damaged and both take the one before it."""
    run("damaged", runs.counter(chunk=2), 4)
    if hosts.is_first():
        (FOLDER / "damaged" / "4.npz").write_text("{")
    store = mx.checkpoints(FOLDER / "damaged")
    like = runs.counter().init(jax.random.key(0), jnp.float32(0))
    found = store.restore({"state": like, "best": like.meta_params})
    store.close()
    return [found.step, float(found.tree["best"])]


def a_full_disk():
    """A write fails on the first host, which alone writes; the run goes on, on both, and says alike
    what was saved.
    """
    write = _snapshot.write

    def full(file, members):
        if "6.npz" in file.name:
            raise OSError(28, "No space left on device")
        write(file, members)

    _snapshot.write = full
    result = run("full", runs.counter(chunk=2))
    _snapshot.write = write
    store = mx.checkpoints(FOLDER / "full")
    saved = store.restore({"state": result.state, "best": result.best}).step
    store.close()
    return [int(result.state.step), saved]


runpy.run_path(str(FOLDER / "train.py"))
me = jax.process_index()
assert jax.process_count() == 2
FOUND |= {
    "reported": [],
    "agreed": [hosts.agreed(me), hosts.agreed(f"from {me}")],
    "largest": hosts.maximum(me),
}
FOUND["refused"] = error(lambda: hosts.run_on_first(no))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", RuntimeWarning)
    FOUND["stopped early"] = stopped_early(me)
    FOUND["not finite"] = not_finite()
    FOUND["another tag"] = error(
        lambda: mx.checkpoints(FOLDER / "early", tag="another").restore({})
    )[1]
    FOUND["damaged"] = damaged()
    FOUND["a full disk"] = a_full_disk()
FOUND["warned"] = [str(w.message).split(" in ")[0].split(" was ")[0] for w in caught]
print(json.dumps(FOUND))
