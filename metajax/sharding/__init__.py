"""One device, several, or several hosts: the same script, its episodes divided over the devices.

    mx.sharding.initialize()  # several hosts only, before anything else
    mesh = mx.sharding.mesh()  # all devices of all hosts
    loop = mx.sharding.split(mx.inner(learner, tasks, 100), mesh)
    trainer = mx.trainer(mx.bptt(loop, num_tasks=64), optax.adam(1e-3))
    state = mx.sharding.place(trainer.init(key, meta_params, data), mesh)
    mx.fit(trainer, state, mx.sharding.place(data, mesh), num_steps=1000)

Estimators run their episodes (of `metajax.ask_tell`: its members) side by side by ``inner.vmap``.
`split` puts in its place a `jax.shard_map` of a vmap over each device's share. So no estimator
holds code for devices, and no shape is guessed. Meta-parameters, optimizer, strategy and data are
whole on every device. Where memory is short, `in_turns` runs a few episodes at a time.

With constraints on shardings alone the compiler reduces the gradient of shared meta-parameters over
the devices at every inner step of the backward pass; the transpose of a shard_map reduces it once,
after the last.
"""

from metajax.sharding._mesh import (
    gather,
    in_turns,
    initialize,
    mesh,
    place,
    split,
)

__all__ = ["gather", "in_turns", "initialize", "mesh", "place", "split"]
