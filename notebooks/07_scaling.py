# %% [markdown]
# # Scale up: several devices, several hosts, resuming
#
# Meta-training is parallel over tasks and over members of a population. Three lines are added for several devices; for
# several hosts one more. This notebook simulates four devices on a CPU.

# %%
# %matplotlib inline
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import tempfile

import jax
import optax

import metajax as mx

META_STEPS = 40  # smoke: 4
print(jax.devices())

# %%
mesh = mx.sharding.mesh()  # all devices
optimizer = mx.optim.lstm(hidden=(8,))
data = mx.data.load("digits")
loop = mx.inner(
    mx.l2l(optimizer, mx.problems.mlp((64, 4, 10))), mx.tasks.minibatches(16), horizon=20
)
loop = mx.sharding.split(loop, mesh)  # episodes over devices

trainer = mx.trainer(mx.bptt(loop, num_tasks=8, truncation=10), optax.adam(1e-3))
state = trainer.init(jax.random.key(0), optimizer.init(jax.random.key(1)), data)
state, data = mx.sharding.place((state, data), mesh)  # episodes split, the rest on all
print("episodes:", state.estimator.t.sharding.spec, "of 8 tasks, two on each device")

# %% [markdown]
# ## A run that survives
#
# With `mx.checkpoints` the whole run is kept: state, keys, history, the best so far. Ctrl-C and SIGTERM save and end it.
# The same script, run again, goes on and ends bit for bit where an uninterrupted one would have.

# %%
folder = tempfile.mkdtemp()
half = mx.fit(
    trainer,
    state,
    data,
    num_steps=META_STEPS // 2,
    checkpoint=mx.checkpoints(folder, every=META_STEPS // 4),
    progress=False,
)
whole = mx.fit(
    trainer,
    state,
    data,
    num_steps=META_STEPS,
    checkpoint=mx.checkpoints(folder, every=META_STEPS // 4),
    progress=False,
)
print(
    "the second call did",
    META_STEPS - int(half.state.step),
    "steps;",
    len(whole.history["loss"]),
    "are in its history",
)

straight = mx.fit(trainer, state, data, num_steps=META_STEPS, progress=False)
same = jax.tree.map(
    lambda a, b: bool((a == b).all()), whole.state.meta_params, straight.state.meta_params
)
print("bit for bit the same:", all(jax.tree.leaves(same)))

# %% [markdown]
# ## Several hosts
#
# Call `mx.sharding.initialize()` first, in each process; the rest stays as it is. The first process writes the
# checkpoints and shows the progress. `docs/scaling.md` has launch lines for SLURM, TPU pods and plain
# ssh, and says what is split where.
