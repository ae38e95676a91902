"""Variable Shared Meta Learning (Kirsch & Schmidhuber 2021): learning by running forward.

The paper looks at one network in three ways. View A is a single large recurrent network whose
weight matrix is sparse and full of shared entries (`metajax.cells.shared_matrix`). View B, which is
what runs here, is a grid of small recurrent networks that share parameters and pass messages. View
C is a network whose neurons are complex: what sits between two units is no weight but a whole
recurrent state.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from metajax import cells
from metajax._arguments import PositiveInt, checked, shown
from metajax._losses import (
    at_least_float32,
    blank_masked,
    cross_entropy_and_accuracy,
)
from metajax.cells import Cell, Layer
from metajax.types import Array, Batch, Learner, MetaParams, PyTree

Cells = list[PyTree]


class VSMLState(NamedTuple):
    """What a VSML network has learned so far.

    Attributes:
      cells: for each layer a pytree of ``[R, P, A, B, N]``: replicas, positions, inputs, outputs,
        features.
      feedback: ``[R, C, 1]``, the last error, not yet sent.
    """

    cells: tuple[PyTree, ...]
    feedback: Array


@checked
def vsml(
    layers: Sequence[int | Layer],
    cell: Cell | None = None,
    *,
    batch_size: PositiveInt = 1,
    backward_pass: bool = False,
) -> Learner:
    """A network whose forward dynamics are its learning algorithm; it takes no gradient.

    Each step sends an image upwards (forward slot 0) and the error of the step before downwards
    (backward slot 0); every cell takes its ticks; the logits are read from forward slot 1 (slot 0
    if that is the only one) as ``100 tanh(z / 100)``. The error is ``softmax(logits) -
    onehot(label)``. Layers take their turn from the first to the last within one example; messages
    downwards are those of the step before.

    The shapes of the parameters do not depend on the number of inputs, outputs, layers or examples,
    and what was meta-learned with some inputs and outputs learns with others. Not so with more
    layers than were there in meta-training, or with convolutions instead of dense ones: it runs,
    at chance. With one layer nothing reads what its cells send downwards, so that the parameters
    ``backward`` have a gradient of zero, and of noise alone under an evolution strategy. A
    permutation of the inputs or of the outputs permutes the states and changes nothing else.

    One dense layer is the network of the code published with the paper, to rounding, if examples
    come one by one; of several at once, it sends the error of their mean, which is what is sent
    here divided by ``batch_size``. With several layers parameters do not transfer from it, in three
    points. Messages here are computed from the cells' states when they are read, so that the cells
    are all there is to keep; there they are stored: zero at first, where here the messengers' bias
    is sent, and of the time before replicas are merged. With ``backward_pass`` nothing comes from
    above on the way up; there it is what was last sent. And there a convolution averages all
    features over its positions at every tick, pads by 1, and divides its messages by the square of
    the kernel's width.

    Args:
      layers: units from the input to the classes, e.g. ``(784, 10)``, or layers from
        `metajax.cells.dense` and `metajax.cells.convolution`. An image is flattened first.
      cell: what each crossing holds; `metajax.cells.lstm` by default, with its 2,384 parameters.
      batch_size: R, examples learned from at once. Each has a replica of the states; before each
        step the first half of the features is averaged over the replicas (and over the positions of
        a convolution).
      backward_pass: nothing is sent downwards until the prediction is made; then the layers are
        swept a second time, from the last to the first, with the current example and its own error.
        Without it the error arrives together with the next example.

    Raises:
      ValueError: sizes that do not chain; when traced, images or batches of another size, labels
        out of range (compiled programs, which cannot raise, report a loss of NaN for those).

    >>> import jax, metajax as mx
    >>> learner = mx.vsml((16, 10))
    >>> digits = mx.data.resize(mx.data.load("digits"), 4)
    >>> loop = mx.inner(learner, mx.tasks.minibatches(1), horizon=20)
    >>> meta_params = learner.meta(jax.random.key(1))
    >>> curves = mx.evaluate(loop, jax.random.key(0), meta_params, digits, num_tasks=2)
    >>> curves.metrics["accuracy"].shape
    (2, 20)
    """
    cell = cells.lstm() if cell is None else cell
    net = _Network(_chain(layers), cell, backward_pass)
    if net.classes < 2:
        raise ValueError("layers must end in at least 2 classes")

    def init(key, meta_params, task):
        del meta_params, task
        feedback = jnp.zeros((batch_size, net.classes, 1))
        return VSMLState(net.initial_cells(key, batch_size), feedback)

    def step(key, meta_params, state, batch):
        del key
        batch = blank_masked(batch, "image", "label")
        _check_batch_size(batch, batch_size)
        merged = _merge_replicas(state.cells)
        states, sent, logits = net.sweep_up(
            meta_params, merged, batch["image"], state.feedback
        )

        onehot = jax.nn.one_hot(batch["label"], net.classes)
        error = (jax.nn.softmax(logits) - onehot)[..., None]
        if backward_pass:
            states = net.sweep_down(meta_params, states, sent, error)
        new = VSMLState(tuple(states), error)

        loss, metrics = cross_entropy_and_accuracy(
            logits, batch["label"], batch.get("mask")
        )
        return _without_masked(new, state, batch), loss, metrics

    def predict(key, meta_params, state, inputs):
        del key
        merged = VSMLState(_merge_replicas(state.cells), state.feedback)
        replica = jax.tree.map(lambda x: x[:1], merged)

        def logits_of(image):
            sweep = net.sweep_up(
                meta_params, replica.cells, image[None], replica.feedback
            )
            _, _, logits = sweep
            return logits[0]

        # A few at a time: each example has a grid of its own.
        return lax.map(logits_of, inputs, batch_size=min(len(inputs), 32))

    def test(key, meta_params, state, batch):
        batch = blank_masked(batch, "image", "label")
        logits = predict(key, meta_params, state, batch["image"])
        return cross_entropy_and_accuracy(logits, batch["label"], batch.get("mask"))

    # One program, not operation by operation.
    return Learner(init, step, test, predict, meta=jax.jit(cell.init))


class _Network(NamedTuple):
    """Layers of cells, and how an example goes through them."""

    layers: tuple[Layer, ...]
    cell: Cell
    backward_pass: bool

    @property
    def classes(self) -> int:
        return self.layers[-1].positions * self.layers[-1].outputs

    @property
    def logit_slot(self) -> int:
        return min(1, self.cell.slots - 1)

    def initial_cells(self, key: Array, replicas: int) -> tuple[PyTree, ...]:
        """States that are the same for all replicas and positions."""
        keys = jax.random.split(key, len(self.layers))
        states = []
        for k, layer in zip(keys, self.layers, strict=True):
            state = self.cell.state(k, (1, 1, layer.inputs, layer.outputs))
            lead = (replicas, layer.positions)
            states.append(jax.tree.map(partial(_repeat, lead), state))
        return tuple(states)

    def sweep_up(
        self,
        meta_params: MetaParams,
        states: Sequence[PyTree],
        image: Array,
        feedback: Array,
    ) -> tuple[Cells, list[Array], Array]:
        """Sends an image ``[R, ...]`` through.

        Returns the states, what each layer was sent from below, and the logits ``[R, C]``.
        """
        replicas = image.shape[0]
        units = image.size // replicas
        if units != self.layers[0].units:
            raise ValueError(
                f"layers begin with {self.layers[0].units} units, but an image "
                f"{list(image.shape[1:])} has {units}"
            )
        states = list(states)
        sent = [image.reshape(replicas, units, 1)]
        for k, layer in enumerate(self.layers):
            if self.backward_pass:  # silence from above
                downward = jnp.zeros((replicas, layer.positions * layer.outputs, 0))
            else:
                downward = self._messages_down(meta_params, states, k, feedback)
            states[k] = self._tick(meta_params, states[k], layer, sent[k], downward)
            sent.append(self._messages_up(meta_params, states, k))
        read = at_least_float32(sent[-1][..., self.logit_slot])
        logits = 100 * jnp.tanh(read / 100)
        return states, sent, logits

    def sweep_down(
        self, meta_params: MetaParams, states: Cells, sent: list[Array], feedback: Array
    ) -> Cells:
        """The second sweep, from the last layer to the first, with the error of the example."""
        states = list(states)
        for k in reversed(range(len(self.layers))):
            downward = self._messages_down(meta_params, states, k, feedback)
            states[k] = self._tick(
                meta_params, states[k], self.layers[k], sent[k], downward
            )
        return states

    def _tick(
        self,
        meta_params: MetaParams,
        state: PyTree,
        layer: Layer,
        upward: Array,
        downward: Array,
    ) -> PyTree:
        replicas, _, slots = downward.shape
        downward = downward.reshape(replicas, layer.positions, layer.outputs, slots)
        return self.cell.step(meta_params, state, layer.split(upward), downward)

    def _messages_up(self, meta_params: MetaParams, states: Cells, k: int) -> Array:
        is_last = k == len(self.layers) - 1
        slots = self.logit_slot + 1 if is_last else self.cell.slots
        messages = self.cell.forward(meta_params, states[k], slots)
        return messages.reshape(messages.shape[0], -1, slots)

    def _messages_down(
        self, meta_params: MetaParams, states: Cells, k: int, feedback: Array
    ) -> Array:
        is_last = k == len(self.layers) - 1
        if is_last:
            return feedback
        messages = self.cell.backward(meta_params, states[k + 1], self.cell.slots)
        return self.layers[k + 1].merge(messages)


def _chain(layers: Sequence[int | Layer]) -> tuple[Layer, ...]:
    """Layers that fit each other, made from numbers of units where those are given."""
    if not isinstance(layers, Sequence) or isinstance(layers, (str, bytes)):
        raise TypeError(
            f"layers must be a tuple such as (784, 10), got {shown(layers)}"
        )
    layers = tuple(layers)
    sizes = [n for n in layers if isinstance(n, int)]
    chain = [layer for layer in layers if isinstance(layer, Layer)]
    if sizes and not chain:
        chain = [cells.dense(below, above) for below, above in pairwise(sizes)]
    if not chain or len(layers) not in (len(chain), len(sizes)):
        raise ValueError(
            f"layers must be the units of at least an input and an output, e.g. (784, 10), or "
            f"layers from metajax.cells.dense and metajax.cells.convolution, got {layers}"
        )
    for k, (below, above) in enumerate(pairwise(chain)):
        outputs = below.positions * below.outputs
        if outputs != above.units:
            raise ValueError(
                f"layers[{k}] has {outputs} outputs and layers[{k + 1}] {above.units} inputs; they "
                f"must be equal"
            )
    return tuple(chain)


def _repeat(lead: tuple[int, int], x: Array) -> Array:
    return jnp.broadcast_to(x, (*lead, *x.shape[2:]))


def _merge_replicas(states: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """Averages the first half of the features over replicas and positions; the rest is private."""

    def merge(x):
        if x.shape[0] * x.shape[1] == 1:
            return x
        half = (x.shape[-1] + 1) // 2
        mean = x[..., :half].mean((0, 1), keepdims=True)
        shared = jnp.broadcast_to(mean, (*x.shape[:-1], half))
        return jnp.concatenate([shared, x[..., half:]], axis=-1)

    return jax.tree.map(merge, states)


def _without_masked(new: VSMLState, old: VSMLState, batch: Batch) -> VSMLState:
    """What the step makes of all replicas where only some examples count.

    The other replicas become like the first of those that do, but for what all share: that is the
    mean of those that do. So they have no part in the next mean. If no example counts, all stay as
    they are.
    """
    if "mask" not in batch:
        return new
    mask = batch["mask"]
    num_counted = jnp.maximum(mask.sum(), 1)
    source = jnp.where(mask, jnp.arange(len(mask)), jnp.argmax(mask))

    def follow(x):
        """Of cells, ``[R, P, A, B, N]``."""
        counts = mask[:, None, None, None, None]
        half = (x.shape[-1] + 1) // 2
        shared = x[..., :half]
        over_positions = shared.mean(1, keepdims=True)
        mean = over_positions.sum(0, where=counts, keepdims=True) / num_counted
        shared = jnp.where(counts, shared, mean)
        return jnp.concatenate([shared, x[source, ..., half:]], axis=-1)

    followed = VSMLState(jax.tree.map(follow, new.cells), new.feedback[source])
    return optax.tree.where(mask.any(), followed, old)


def _check_batch_size(batch: Batch, batch_size: int) -> None:
    if batch["label"].shape != (batch_size,):
        raise ValueError(
            f"batch_size is {batch_size}, but the tasks give labels "
            f"{list(batch['label'].shape)}; make both the same"
        )
