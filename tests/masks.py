"""What tests of masks share: batches with examples that are to make no difference."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def spoil(batch, mask):
    """The batch with that ``mask``, and with NaN or -1 in the place of what it leaves out."""
    spoilt = {}
    for name, values in batch.items():
        spoilt[name] = values = np.array(values)
        values[~mask] = np.nan if np.issubdtype(values.dtype, np.floating) else -1
    return spoilt | {"mask": mask}


def keep(batch, mask):
    """The examples that count, alone."""
    return {name: np.asarray(values)[mask] for name, values in batch.items()}


def images(seed, size, shape=(4,), classes=3):
    """A batch ``{"image": [size, *shape], "label": [size]}``."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, *shape)),
        "label": rng.integers(0, classes, size),
    }


def same(run, params, *batches_and_masks, rtol=1e-9):
    """``run(params, *batches) -> (loss, others)``, its gradient too, is that of what counts."""
    compiled = jax.jit(jax.value_and_grad(run, has_aux=True))
    got = compiled(params, *(spoil(*pair) for pair in batches_and_masks))
    want = compiled(params, *(keep(*pair) for pair in batches_and_masks))
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=rtol / 1000)


def learner_ignores(learner, meta_params, size=6, rtol=1e-9):
    """Two steps and a test, and their derivative, do not see what is masked."""

    def run(meta_params, support, query):
        key = jax.random.key(0)
        state = learner.init(key, meta_params, ())
        for _ in range(2):
            state, loss, metrics = learner.step(key, meta_params, state, support)
        test_loss, test_metrics = learner.test(key, meta_params, state, query)
        return loss + test_loss, (state, loss, metrics, test_metrics)

    support_mask = np.arange(size) % 3 != 0  # the first is left out
    query_mask = np.arange(size) % 2 == 0
    support = images(0, size), support_mask
    query = images(1, size), query_mask
    params = jax.tree.map(jnp.asarray, meta_params)
    same(run, params, support, query, rtol=rtol)
