"""Variable Shared Meta Learning (Kirsch & Schmidhuber 2021): a learning algorithm in the dynamics
of a grid of LSTMs.

The paper looks at one network in three ways. View A is a single large recurrent network whose
weight matrix is sparse and full of shared entries (`metajax.cells.shared_matrix`). View B, which is
what runs here, is a grid of small recurrent networks that share parameters and pass messages. View
C is a network whose neurons are complex: what sits between two units is no weight but a whole
recurrent state.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from metajax import _checks, cells
from metajax._losses import cross_entropy_and_accuracy
from metajax.cells import Cell, Layer
from metajax.types import Array, InContext, Learner, PyTree


class VSMLState(NamedTuple):
    """What a VSML network has learned so far.

    Attributes: cells: for each layer a pytree of ``[R, P, A, B, N]``: replicas, positions, inputs,
      outputs, features. feedback: ``[R, C, 1 or 2]``, the last error and perhaps the last label,
      not yet sent.
    """

    cells: tuple[PyTree, ...]
    feedback: Array


def vsml(
    layers: Sequence[int | Layer],
    cell: Cell | None = None,
    *,
    batch_size: int = 1,
    feed_label: bool = False,
    backward_pass: bool = False,
    layerwise: bool = False,
) -> InContext:
    """A network whose forward dynamics are its learning algorithm; no gradient is taken when it
    learns.

    Each step sends an image upwards (forward slot 0) and the error of the step before downwards
    (backward slot 0); every cell takes its ticks; the logits are read from forward slot 1 (slot 0
    if that is the only one) as ``100 tanh(z / 100)``. The error is ``softmax(logits) -
    onehot(label)``. Layers take their turn from the first to the last within one example; messages
    downwards are those of the step before.

    The parameters do not depend on the number of inputs, outputs, layers or examples: what was
    meta-learned with one network runs with any other of the same cell. A permutation of the inputs
    or of the outputs permutes the states and changes nothing else.

    Args: layers: units from the input to the classes, e.g. ``(784, 10)``, or layers from
      `metajax.cells.dense` and `metajax.cells.convolution`. An image is flattened first. cell: what
      each crossing holds; `metajax.cells.lstm` by default, with its 2,384 parameters. batch_size:
      R, examples learned from at once. Each has a replica of the states; before each step the first
      half of the features is averaged over the replicas (and over the positions of a convolution).
      feed_label: send the one-hot label of the last example too, in backward slot 1. backward_pass:
      nothing is sent downwards until the prediction is made; then the layers are swept a second
      time, from the last to the first, with the current example and its own error. Without it the
      error arrives together with the next example. layerwise: a set of parameters for each layer
      instead of one for all.

    Returns: ``init`` and ``learner``. With one layer nothing reads what its cells send downwards,
      so that the parameters ``backward`` have a gradient of zero, and of noise alone under an
      evolution strategy.

    Raises: TypeError, ValueError: sizes that do not chain, too few message slots; when traced,
      images or batches of another size, labels out of range (compiled programs, which cannot raise,
      report a loss of NaN for those).

    >>> import jax, metajax as mx
    >>> net = mx.vsml((16, 10))
    >>> data = mx.data.resize(mx.data.load("digits"), 4)
    >>> loop = mx.inner(net.learner, mx.tasks.minibatches(1), horizon=20)
    >>> curves = mx.evaluate(loop, jax.random.key(0), net.init(jax.random.key(1)), data, num_tasks=2)
    >>> curves.metrics["accuracy"].shape
    (2, 20)
    """
    wired = _chain(layers)
    cell = cells.lstm() if cell is None else cell
    _checks.instance(Cell, cell=cell)
    replicas = _checks.positive_int("batch_size", batch_size)
    classes = wired[-1].positions * wired[-1].outputs
    if feed_label and cell.slots < 2:
        raise ValueError(
            f"cell must have messages of at least 2 slots, error and label, got {cell.slots}"
        )
    if classes < 2:
        raise ValueError("layers must end in at least 2 classes")
    top, logit = len(wired) - 1, min(1, cell.slots - 1)

    def of(meta_params, k):
        return meta_params[k] if layerwise else meta_params

    def init(key):
        return (
            tuple(map(cell.init, jax.random.split(key, len(wired))))
            if layerwise
            else cell.init(key)
        )

    def initial(key, meta_params, task):
        def cells(key, layer):
            state = cell.state(key, (1, 1, layer.inputs, layer.outputs))
            return jax.tree.map(
                lambda x: jnp.broadcast_to(x, (replicas, layer.positions, *x.shape[2:])), state
            )

        states = map(cells, jax.random.split(key, len(wired)), wired)
        return VSMLState(tuple(states), jnp.zeros((replicas, classes, 2 if feed_label else 1)))

    def tick(meta_params, cells, k, upward, downward):
        layer = wired[k]
        downward = downward.reshape(
            downward.shape[0], layer.positions, layer.outputs, downward.shape[-1]
        )
        return cell.step(of(meta_params, k), cells[k], layer.split(upward), downward)

    def messages_up(meta_params, cells, k):
        x = cell.forward(of(meta_params, k), cells[k], logit + 1 if k == top else cell.slots)
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def messages_down(meta_params, cells, k, feedback):
        if k == top:
            return feedback
        return wired[k + 1].merge(cell.backward(of(meta_params, k + 1), cells[k + 1], cell.slots))

    def sweep_up(meta_params, cells, image, feedback):
        """Cells after an example has gone through, what each layer was sent from below, and the
        logits.
        """
        cells, sent = list(cells), [image.reshape(image.shape[0], -1, 1)]
        for k in range(len(wired)):
            silence = jnp.zeros((image.shape[0], wired[k].positions * wired[k].outputs, 0))
            downward = silence if backward_pass else messages_down(meta_params, cells, k, feedback)
            cells[k] = tick(meta_params, cells, k, sent[k], downward)
            sent.append(messages_up(meta_params, cells, k))
        return cells, sent, 100 * jnp.tanh(sent[-1][..., logit] / 100)

    def sweep_down(meta_params, cells, sent, feedback):
        for k in reversed(range(len(wired))):
            cells[k] = tick(
                meta_params, cells, k, sent[k], messages_down(meta_params, cells, k, feedback)
            )
        return cells

    def predict(meta_params, state, image):
        units = image.size // image.shape[0]
        if units != wired[0].units:
            raise ValueError(
                f"layers begin with {wired[0].units} units, but an image {list(image.shape[1:])} has {units}"
            )
        cells = tuple(_share(s) for s in state.cells)
        return sweep_up(meta_params, cells, image, state.feedback)

    def step(key, meta_params, state, batch):
        if batch["label"].shape != (replicas,):
            raise ValueError(
                f"batch_size is {replicas}, but the tasks give labels {list(batch['label'].shape)}; make both the same"
            )
        cells, sent, logits = predict(meta_params, state, batch["image"])
        onehot = jax.nn.one_hot(batch["label"], classes)
        error = jax.nn.softmax(logits) - onehot
        feedback = jnp.stack([error, onehot] if feed_label else [error], axis=-1)
        if backward_pass:
            cells = sweep_down(meta_params, cells, sent, feedback)
        return VSMLState(tuple(cells), feedback), *cross_entropy_and_accuracy(
            logits, batch["label"]
        )

    def test(meta_params, state, batch):
        one = jax.tree.map(
            lambda x: x[:1], state._replace(cells=tuple(_share(s) for s in state.cells))
        )
        # A few at a time: each example has a grid of its own.
        size = min(len(batch["label"]), 32)
        logits = lax.map(
            lambda x: predict(meta_params, one, x[None])[2][0], batch["image"], batch_size=size
        )
        return cross_entropy_and_accuracy(logits, batch["label"])

    def loss(key, meta_params, state, batch):
        return test(meta_params, state, batch)[0]

    def metrics(key, meta_params, state, batch):
        return test(meta_params, state, batch)[1]

    # Compiled as one program, not operation by operation.
    return InContext(jax.jit(init), Learner(initial, step, loss, metrics))


def _chain(layers: Sequence[int | Layer]) -> tuple[Layer, ...]:
    layers = tuple(layers)
    sizes = [n for n in layers if isinstance(n, int)]
    wired = [layer for layer in layers if isinstance(layer, Layer)]
    if sizes and not wired:
        wired = [cells.dense(a, b) for a, b in pairwise(sizes)]
    if not wired or len(layers) not in (len(wired), len(sizes)):
        raise ValueError(
            f"layers must be the units of at least an input and an output, e.g. (784, 10), or layers from "
            f"metajax.cells.dense and metajax.cells.convolution, got {layers}"
        )
    for k, (below, above) in enumerate(pairwise(wired)):
        if below.positions * below.outputs != above.units:
            raise ValueError(
                f"layers[{k}] has {below.positions * below.outputs} outputs and layers[{k + 1}] {above.units} inputs; "
                f"they must be equal"
            )
    return tuple(wired)


def _share(state: PyTree) -> PyTree:
    """Averages the first half of the features over replicas and positions; the other half stays
    private.
    """

    def share(x):
        if x.shape[0] * x.shape[1] == 1:
            return x
        half = (x.shape[-1] + 1) // 2
        mean = jnp.broadcast_to(x[..., :half].mean((0, 1), keepdims=True), (*x.shape[:-1], half))
        return jnp.concatenate([mean, x[..., half:]], axis=-1)

    return jax.tree.map(share, state)
