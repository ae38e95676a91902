"""Learners in context: a meta-gradient against the length of the stream.

Example by example, and by whole streams where the learner can: it comes to the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import metajax as mx
from benchmarks.measure import Measured, Program, contest
from benchmarks.table import Row, Setting, compared, costs, memory

SINGLY = "example by example"
RTOL = 1e-3  # float32 over hundreds of examples


def in_context(setting: Setting) -> list[Row]:
    """A meta-gradient over streams, by their length: writes a table."""
    pixels, classes = (16, 3) if setting.smoke else (196, 10)
    lengths = (4,) if setting.smoke else (25, 100, 400)
    num_streams = 2 if setting.smoke else 16
    rows = []
    columns = {}
    for length in lengths:
        streams = _streams(num_streams, length, pixels, classes)
        learners = {
            "delta rule": mx.delta_rule(pixels, classes),
            "GPICL": mx.gpicl(pixels, classes, context=length),
            "VSML": mx.vsml((pixels, classes)),
        }
        column = {}
        for name, learner in learners.items():
            pieces = {SINGLY: 1} if name == "VSML" else {"ours": length, SINGLY: 1}
            found = _contest(setting, learner, streams, pieces)
            what = f"{name}, {num_streams} x {length} examples"
            rows.append(compared("in_context", what, found))
            rows.append(memory("in_context", f"temporary memory, {what}", found))
            for how, measured in found.items():
                column[f"{name}, {how}".replace("ours", "whole streams")] = measured
        columns[f"{length} examples"] = column
    table = costs(f"{num_streams} streams", columns)
    (setting.out / "in_context.md").write_text(table)
    return rows


def _streams(num: int, length: int, pixels: int, classes: int) -> mx.types.Batch:
    """Images of noise ``[num, length, pixels]`` and their labels ``[num, length]``."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(num, length, pixels)).astype(np.float32)
    labels = rng.integers(classes, size=(num, length)).astype(np.int32)
    return {"image": images, "label": labels}


def _contest(
    setting: Setting,
    learner: mx.Learner,
    streams: mx.types.Batch,
    pieces: dict[str, int],
) -> dict[str, Measured]:
    """A meta-gradient, for each size of the pieces of a stream that are taken at once."""
    meta_params = learner.meta(jax.random.key(0))
    programs = {}
    for contender, piece in pieces.items():
        loss = _mean_loss(learner, piece)
        programs[contender] = Program(jax.value_and_grad(loss), (meta_params, streams))
    return contest(programs, setting.limits, rtol=RTOL, rounds=setting.rounds)


def _mean_loss(learner: mx.Learner, piece: int) -> Callable[..., Any]:
    """Of ``(meta_params, streams)``, so many examples a step, each step rematerialised."""
    key = jax.random.key(1)

    def loss_of_stream(meta_params, stream):
        @jax.checkpoint
        def step(state, batch):
            state, loss, _ = learner.step(key, meta_params, state, batch)
            return state, loss

        batches = jax.tree.map(lambda x: x.reshape(-1, piece, *x.shape[1:]), stream)
        start = learner.init(key, meta_params, ())
        _, losses = lax.scan(step, start, batches)
        return losses.mean()

    def loss(meta_params, streams):
        return jnp.mean(jax.vmap(partial(loss_of_stream, meta_params))(streams))

    return loss


CASES = (in_context,)
