# %% [markdown]
# # Learned optimizers: train one, drop it into optax, use it on your own model

# %%
# %matplotlib inline
import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.train_state import TrainState

import metajax as mx

META_STEPS = 400  # smoke: 4
STEPS = 100  # smoke: 5
NET_STEPS = 300  # smoke: 5

# %% [markdown]
# ## What is in the box
#
# `mx.optim` has the LSTM of Andrychowicz et al. (2016) with the settings of the paper and of its
# code, the same with global averaging cells, NTM-BFGS, RNNProp, small per-parameter networks,
# learned schedules and per-parameter rates. Each is a pair `(init, tx)`: `init(key)` gives
# meta-parameters, `tx(meta_params)` an `optax.GradientTransformation`.
#
# One that is already meta-trained is loaded by name, offline. Celo2 (Moudgil et al. 2026) is made for
# runs of thousands of steps. It is told how long the run will be, and its rate rises and falls with
# that; there is none to choose.

# %%
print(mx.pretrained.list())
celo2 = mx.pretrained.load("celo2-images")

# %% [markdown]
# ## On your own flax model


# %%
class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(16, (3, 3), strides=2)(x))
        x = linen.relu(linen.Conv(32, (3, 3), strides=2)(x))
        return linen.Dense(10)(x.reshape(len(x), -1))


model = Net()
data = mx.data.load("digits", "test")
images = jnp.asarray(data["image"], jnp.float32) / 255
labels = jnp.asarray(data["label"])
state = TrainState.create(
    apply_fn=model.apply,
    params=model.init(jax.random.key(0), images[:1])["params"],
    tx=optax.chain(optax.clip_by_global_norm(10.0), celo2(NET_STEPS)),
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


for i in range(NET_STEPS):
    state, value = train_step(state, jax.random.key(i))
    if i % 50 == 0:
        print(f"step {i}: loss {value:.3f}")

# %% [markdown]
# Beside AdamW, whose rate is searched on other runs:

# %%
search = mx.RateSearch([1e-3, 3e-3, 1e-2, 3e-2, 0.1])
optimizers = {"Celo2": celo2(NET_STEPS), "AdamW": optax.adamw}
comparison = mx.compare(
    optimizers,
    mx.problems.linen(Net(), (8, 8, 1)),
    mx.tasks.minibatches(64),
    jax.random.key(3),
    data,
    steps=NET_STEPS,
    num_tasks=2,
    search=search,
)
print(comparison)

# %% [markdown]
# ## And on a small transformer
#
# It reads sums in words. A matrix is a leaf of two axes for Celo2, or the last two of a kernel:
# projections are written as one matrix each, and embeddings are left to its Adam, as its authors
# advise.


# %%
class Block(nnx.Module):
    def __init__(self, width, heads, rngs):
        self.heads = heads
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.project = nnx.Linear(width, 3 * width, rngs=rngs)
        self.join = nnx.Linear(width, width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        first_norm, second_norm = self.norms
        projected = self.project(first_norm(x))
        heads = projected.reshape(*x.shape[:2], 3, self.heads, -1)
        mixed = jax.nn.dot_product_attention(
            *jnp.unstack(heads, axis=2), is_causal=True
        )
        x = x + self.join(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(second_norm(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs, symbols=29, length=33, width=32):
        self.symbols = nnx.Embed(symbols, width, rngs=rngs)
        self.positions = nnx.Embed(length, width, rngs=rngs)
        self.block = Block(width, 4, rngs)
        self.out = nnx.Linear(width, symbols, rngs=rngs)

    def __call__(self, text):
        positions = self.positions(jnp.arange(text.shape[1]))
        return self.out(self.block(self.symbols(text) + positions[None]))


def next_symbol(logits, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], batch["text"][:, 1:]
    )
    return losses.mean(), {}


def is_matrix(path, leaf):
    return leaf.ndim > 1 and "embedding" not in jax.tree_util.keystr(path)


optimizers = {
    "Celo2": celo2(NET_STEPS, is_matrix=is_matrix),
    "AdamW": optax.adamw,
}
comparison = mx.compare(
    optimizers,
    mx.problems.nnx(lambda rngs: Transformer(rngs), next_symbol, "text"),
    mx.tasks.text(32, length=32),
    jax.random.key(4),
    mx.data.sums(),
    steps=NET_STEPS,
    num_tasks=2,
    search=search,
)
print(comparison)
mx.plot.curves(comparison.loss, ylabel="training loss (nats)").figure

# %% [markdown]
# ## What does such an optimizer do?
#
# That of a small LSTM, meta-trained for runs of 50 steps: its update of a coordinate against the gradient, after ten steps with a constant gradient:
# momentum, a saturating dependence on the size of the gradient, and more. Adam beside it.

# %%
tx = mx.pretrained.load("l2l-digits")
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
