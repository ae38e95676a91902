# %% [markdown]
# # Learned optimizers: train one, drop it into optax, use it on your own model

# %%
# %matplotlib inline
import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import metajax as mx

META_STEPS = 400  # smoke: 4
STEPS = 100  # smoke: 5

# %% [markdown]
# ## What is in the box
#
# `mx.optim` has the LSTM of Andrychowicz et al. (2016) with the settings of the paper and of its
# code, the same with global averaging cells, NTM-BFGS, RNNProp, small per-parameter networks,
# learned schedules and per-parameter rates. Each is a pair `(init, tx)`: `init(key)` gives
# meta-parameters, `tx(meta_params)` an `optax.GradientTransformation`.
#
# One that is already meta-trained is loaded by name, offline:

# %%
print(mx.pretrained.list())
tx = mx.pretrained.load("l2l-digits")

# %% [markdown]
# ## On your own flax model
#
# No learning rate to choose.


# %%
class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.sigmoid(linen.Dense(24)(x.reshape(len(x), -1)))
        return linen.Dense(10)(x)


model = Net()
data = mx.data.load("digits", "test")
images = jnp.asarray(data["image"], jnp.float32) / 255
labels = jnp.asarray(data["label"])
state = TrainState.create(
    apply_fn=model.apply,
    params=model.init(jax.random.key(0), images[:1])["params"],
    tx=optax.chain(optax.clip_by_global_norm(10.0), tx),
)


@jax.jit
def train_step(state, key):
    index = jax.random.randint(key, (64,), 0, len(labels))

    def loss(params):
        logits = state.apply_fn({"params": params}, images[index])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, labels[index]
        ).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value


for i in range(STEPS):
    state, value = train_step(state, jax.random.key(i))
    if i % 20 == 0:
        print(f"step {i}: loss {value:.3f}")

# %% [markdown]
# ## What does it do?
#
# Its update of a coordinate against the gradient, after ten steps with a constant gradient:
# momentum, a saturating dependence on the size of the gradient, and more. Adam beside it.

# %%
mx.plot.update_rule(tx, largest=0.2, past=(-0.1, 0.0, 0.1)).figure

# %%
mx.plot.update_rule(optax.adam(0.1), largest=0.2, past=(-0.1, 0.0, 0.1)).figure

# %% [markdown]
# ## Meta-train one on a family of networks
#
# An optimizer knows what it has met. `mx.problems.random_mlp` draws width, depth and activation for
# each task, and `mx.problems.random_scaling` the units of each parameter.

# %%
optimizer = mx.optim.rnnprop()
train = mx.data.load("digits", "train")
problem, tasks = mx.problems.random_mlp(
    mx.tasks.minibatches(64),
    64,
    10,
    widths=(4, 16),
)
learner = mx.l2l(optimizer, problem)
loop = mx.inner(learner, tasks, horizon=100)
schedule = optax.cosine_decay_schedule(3e-3, META_STEPS)
outer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
trainer = mx.trainer(mx.bptt(loop, num_tasks=4, truncation=20), outer)
start = trainer.init(jax.random.key(1), learner.meta(jax.random.key(2)), train)
result = mx.fit(trainer, start, train, num_steps=META_STEPS)

# %% [markdown]
# ## Compare before you believe
#
# On a ReLU network, which `l2l-digits` has never met, with searched baselines:

# %%
comparison = mx.compare(
    {"RNNProp, a family": optimizer.tx(result.best), "l2l-digits": tx, **mx.BASELINES},
    mx.problems.mlp((64, 20, 10), jax.nn.relu),
    mx.tasks.minibatches(64),
    jax.random.key(3),
    data,
    steps=STEPS,
    num_tasks=8,
)
print(comparison)
mx.plot.curves(comparison.loss, ylabel="training loss (nats)").figure

# %% [markdown]
# ## Save it, also for others
#
# A file with the ending `.safetensors` can be read by PyTorch and others too; nothing is ever
# unpickled.

# %%
mx.save("out/rnnprop.safetensors", result.best)
again = optimizer.tx(mx.load("out/rnnprop.safetensors", like=result.best))
