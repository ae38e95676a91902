"""Short runs for the tests that stop and kill them; run again, each goes on."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metajax as mx
from metajax.training._trainer import chunked


def make(clip=1.0):
    inner = mx.inner(
        mx.l2l(optax.sgd, mx.problems.quadratic(), second_order=True),
        mx.tasks.quadratics(2),
        4,
    )
    tx = optax.chain(optax.clip_by_global_norm(clip), optax.adam(1e-3))
    trainer = mx.trainer(mx.bptt(inner, 2, 2, stagger=True), tx, chunk=5)
    return inner, trainer, trainer.init(jax.random.key(0), jnp.float32(1e-3))


INNER, TRAINER, STATE = None, None, None


def run(folder, num_steps=60, every=7, log="log.jsonl", callbacks=()):
    """A real run with everything switched on; bit for bit the same on every machine state."""
    global INNER, TRAINER, STATE
    if TRAINER is None:  # one trainer, and with it one compilation, for all tests
        INNER, TRAINER, STATE = make()

    def loss(key, meta_params, data):
        return mx.evaluate(INNER, key, meta_params, num_tasks=4).loss.mean()

    return mx.fit(
        TRAINER,
        STATE,
        num_steps=num_steps,
        validate=mx.validation(loss, jax.random.key(1), every=10),
        checkpoint=mx.checkpoints(
            Path(folder) / "checkpoints", every=every, tag="test"
        ),
        callbacks=[mx.log(Path(folder) / log), *callbacks],
        progress=None,
    )


def arrays(result):
    """Everything a run returns, as a flat dict of host arrays."""
    named = {}
    for path, x in jax.tree_util.tree_leaves_with_path(result):
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        named[jax.tree_util.keystr(path)] = np.asarray(
            jax.random.key_data(x) if is_key else x
        )
    return named


def same(a, b):
    """Asserts that two trees are equal bit for bit."""
    a, b = arrays(a), arrays(b)
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def process(folder, cache):
    """The body of a process that is killed from outside; its marks are files, since a lock would
    die with it.
    """
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    run(folder, callbacks=[lambda rows: (folder / "started").touch()])
    (folder / "ended").touch()


def counter(metrics=lambda step: {}, chunk=10, max_skipped=10):
    """A trainer that does nothing: its meta-parameter is the step, its loss ``metrics``."""

    def step(state, data):
        new = state.step + 1
        reported = {"loss": 1.0 / new, "skipped": jnp.int32(0)} | metrics(new)
        skipped = jnp.asarray(reported["skipped"], jnp.int32)
        meta_params = jnp.where(skipped > 0, state.meta_params, new.astype(jnp.float32))
        return state._replace(
            step=new, meta_params=meta_params, skipped=skipped
        ), reported

    def init(key, meta_params, data=()):
        return mx.TrainState(key, jnp.int32(0), meta_params, (), (), jnp.int32(0))

    return mx.Trainer(init, step, chunked(step, chunk, max_skipped), chunk, max_skipped)
