# %% [markdown]
# # Scale up: several devices, several hosts, resuming
#
# Meta-training is parallel over tasks and over members of a population. Three lines are added for
# several devices; for several hosts one more. This notebook simulates four devices on a CPU.

# %%
# %matplotlib inline
import os

flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=4"

import tempfile

import jax
import optax

import metajax as mx

META_STEPS = 40  # smoke: 4
print(jax.devices())

# %%
mesh = mx.sharding.mesh()  # all devices
learner = mx.l2l(mx.optim.lstm(hidden=(8,)), mx.problems.mlp((64, 4, 10)))
loop = mx.inner(learner, mx.tasks.minibatches(16), horizon=20)
loop = mx.sharding.split(loop, mesh)  # episodes over devices

data = mx.data.load("digits")
trainer = mx.trainer(mx.bptt(loop, num_tasks=8, truncation=10), optax.adam(1e-3))
state = trainer.init(jax.random.key(0), learner.meta(jax.random.key(1)), data)
state, data = mx.sharding.place((state, data), mesh)  # episodes split, the rest on all
print("episodes:", state.estimator.t.sharding.spec, "of 8 tasks, two on each device")

# %% [markdown]
# ## A run that survives
#
# With `mx.checkpoints` the whole run is kept: state, keys, history, the best so far. Ctrl-C and
# SIGTERM save and end it. The same script, run again, goes on and ends bit for bit where an
# uninterrupted one would have.

# %%
folder = tempfile.mkdtemp()


def run(num_steps):
    checkpoint = mx.checkpoints(folder, every=META_STEPS // 4)
    return mx.fit(
        trainer,
        state,
        data,
        num_steps=num_steps,
        checkpoint=checkpoint,
        progress=None,
    )


first_half = run(META_STEPS // 2)
resumed = run(META_STEPS)
steps_done = META_STEPS - int(first_half.state.step)
print(
    f"the second call did {steps_done} steps; {len(resumed.history['loss'])} are in its history"
)

uninterrupted = mx.fit(trainer, state, data, num_steps=META_STEPS, progress=None)
pairs = zip(
    jax.tree.leaves(resumed.state.meta_params),
    jax.tree.leaves(uninterrupted.state.meta_params),
    strict=True,
)
print("bit for bit the same:", all(bool((a == b).all()) for a, b in pairs))

# %% [markdown]
# ## Several hosts
#
# Call `mx.sharding.initialize()` first, in each process; the rest stays as it is. The first process
# writes the checkpoints and shows the progress. `docs/scaling.md` has launch lines for SLURM, TPU
# pods and plain ssh, and says what is split where.
