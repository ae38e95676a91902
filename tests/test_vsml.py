"""VSML against loops in NumPy, against the one large matrix of the paper, and its symmetries."""

import chex
import jax
import jax.numpy as jnp
import masks
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import metajax as mx
from metajax.cells import convolution, dense, minimal_vsml, shared_matrix
from metajax.cells import lstm as lstm_cell
from metajax.cells import rnn as rnn_cell


def run(net, meta_params, images, labels, state=None):
    """Feeds examples one after the other; returns the state, the losses and the metrics."""
    key = jax.random.key(5)
    state = net.init(key, meta_params, ()) if state is None else state

    def step(state, batch):
        state, loss, metrics = net.step(key, meta_params, state, batch)
        return state, (loss, metrics["accuracy"])

    return jax.lax.scan(step, state, {"image": images, "label": labels})


def stream(key, steps, batch, units, classes):
    k_image, k_label = jax.random.split(key)
    return jax.random.normal(k_image, (steps, batch, units)), jax.random.randint(
        k_label, (steps, batch), 0, classes
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_by_hand(params, c, h, forward, backward, ticks):
    """One cell for a few ticks: vectors in, vectors out."""
    gates = params["gates"]
    w = np.concatenate([gates["forward"], gates["backward"], gates["hidden"]])
    for _ in range(ticks):
        i, g, f, o = np.split(
            np.concatenate([forward, backward, h]) @ w + gates["b"], 4
        )
        c = sigmoid(f + 5) * c + sigmoid(i - 5) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return c, h


def message_by_hand(params, h):
    x = h @ params["w"] + params["b"]
    if "scale" in params:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * params["scale"] + params[
            "offset"
        ]
    return x


def network_by_hand(
    sizes, params, cells, images, labels, *, ticks, slots, reduce, backward_pass
):
    """Kirsch & Schmidhuber 2021, eq. 7, one cell at a time. ``cells[k][a][b] = (c, h)``."""
    layers, classes = len(sizes) - 1, sizes[-1]
    error = np.zeros(classes)

    def total(messages):
        return np.mean(messages, 0) if reduce == "mean" else np.sum(messages, 0)

    def update(k, forward, silent=False):
        if silent:
            slot = np.zeros((sizes[k + 1], slots))
        elif k == layers - 1:
            slot = [np.concatenate([[e], np.zeros(slots - 1)]) for e in error]
        else:
            slot = [
                total(
                    [message_by_hand(params["backward"], h) for _, h in cells[k + 1][a]]
                )
                for a in range(sizes[k + 1])
            ]
        for a in range(sizes[k]):
            for b in range(sizes[k + 1]):
                cells[k][a][b] = lstm_by_hand(
                    params, *cells[k][a][b], forward[a], slot[b], ticks
                )

    losses = []
    for image, y in zip(images, labels, strict=True):
        sent = [[np.concatenate([[x], np.zeros(slots - 1)]) for x in image]]
        for k in range(layers):
            update(k, sent[k], silent=backward_pass)
            sent.append(
                [
                    total(
                        [
                            message_by_hand(params["forward"], cells[k][a][b][1])
                            for a in range(sizes[k])
                        ]
                    )
                    for b in range(sizes[k + 1])
                ]
            )
        logits = 100 * np.tanh(np.array([m[1] for m in sent[-1]]) / 100)
        p = np.exp(logits) / np.exp(logits).sum()
        losses.append(-np.log(p[y]))
        error = p - np.eye(classes)[y]
        if backward_pass:
            for k in reversed(range(layers)):
                update(k, sent[k])
    return losses


CASES = [
    {"sizes": (3, 2)},
    {"sizes": (3, 2), "reduce": "sum", "ticks": 1},
    {"sizes": (3, 2), "backward_pass": True},
    {"sizes": (3, 4, 2), "layer_norm": True},
    {"sizes": (2, 3, 2, 3), "backward_pass": True, "reduce": "sum"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.slow
def test_equals_a_loop_over_single_cells(case):
    with jax.enable_x64(True):
        sizes, ticks, reduce = (
            case["sizes"],
            case.get("ticks", 2),
            case.get("reduce", "mean"),
        )
        norm, back = (case.get(name, False) for name in ("layer_norm", "backward_pass"))
        cell = lstm_cell(4, 3, ticks=ticks, reduce=reduce, layer_norm=norm)
        net = mx.vsml(sizes, cell, backward_pass=back)
        # Every parameter away from its initial value, so that each counts.
        params = jax.tree.map(
            lambda x: (
                x.astype(jnp.float64)
                + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape, jnp.float64)
            ),
            net.meta(jax.random.key(0)),
        )
        images, labels = stream(jax.random.key(1), 5, 1, sizes[0], sizes[-1])
        state = net.init(jax.random.key(2), params, ())
        state = jax.tree.map(lambda x: x.astype(jnp.float64), state)
        cells = [
            [
                [
                    (np.asarray(c[0, 0, a, b]), np.asarray(h[0, 0, a, b]))
                    for b in range(c.shape[3])
                ]
                for a in range(c.shape[2])
            ]
            for c, h in state.cells
        ]
        _, (losses, _) = run(net, params, images.astype(jnp.float64), labels, state)
        params = jax.tree.map(np.asarray, params)
        images, labels = np.asarray(images[:, 0], np.float64), np.asarray(labels[:, 0])
        want = network_by_hand(
            sizes, params, cells, images, labels,
            ticks=ticks, slots=3, reduce=reduce, backward_pass=back,
        )  # fmt: skip
        np.testing.assert_allclose(losses, want, rtol=1e-10)
        assert np.std(want) > 0.01


@pytest.mark.parametrize(
    ("inputs", "outputs", "features"),
    [(3, 3, 4), (2, 5, 3), (5, 2, 3), (1, 1, 2), (4, 1, 1)],
)
@pytest.mark.slow
def test_the_large_matrix_and_the_message_passing_agree(inputs, outputs, features):
    with jax.enable_x64(True):
        w, c = jax.random.normal(
            jax.random.key(0), (2, features, features), jnp.float64
        )
        large = shared_matrix(w, c, inputs, outputs)
        state = jax.random.normal(
            jax.random.key(1), (inputs, outputs, features), jnp.float64
        )
        flat = state.ravel()
        for _ in range(3):
            state, flat = minimal_vsml(w, c, state), jnp.tanh(flat @ large)
        np.testing.assert_allclose(flat, state.ravel(), rtol=1e-12, atol=1e-14)


def test_the_large_matrix_entry_by_entry():
    # Eq. 6 as the paper writes it, one entry at a time.
    w, c = np.random.default_rng(0).normal(size=(2, 2, 2))
    got = np.asarray(shared_matrix(jnp.asarray(w), jnp.asarray(c), 3, 2)).reshape(
        3, 2, 2, 3, 2, 2
    )
    for k, d, i, a, b, j in np.ndindex(got.shape):
        want = (c[i, j] if d == a else 0) + (w[i, j] if (d, k) == (b, a) else 0)
        np.testing.assert_allclose(got[k, d, i, a, b, j], want, rtol=1e-6)


def test_the_minimal_cell_runs_eq_4():
    # A square grid whose backward matrix is 0 and whose own sums come back as its input is eq. 4.
    with jax.enable_x64(True):
        cell = rnn_cell(3)
        w, c = jax.random.normal(jax.random.key(0), (2, 3, 3), jnp.float64)
        state = jax.random.normal(jax.random.key(1), (4, 4, 3), jnp.float64)
        params = {"W": w, "C": c, "D": jnp.zeros((3, 3))}
        got = cell.step(
            params, state, cell.forward(params, state, 3), jnp.zeros((4, 1))
        )
        np.testing.assert_allclose(got, minimal_vsml(w, c, state), rtol=1e-12)


NETS = {
    "headline": lambda a, b: mx.vsml((a, b)),
    "two sweeps": lambda a, b: mx.vsml((a, b), backward_pass=True),
    "deep": lambda a, b: mx.vsml((a, 5, b), lstm_cell(6, 4, layer_norm=True)),
    "minimal": lambda a, b: mx.vsml((a, b), rnn_cell(4)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.slow
def test_a_permutation_of_inputs_and_outputs_changes_nothing(name):
    net = NETS[name](6, 4)
    params = net.meta(jax.random.key(0))
    images, labels = stream(jax.random.key(1), 12, 1, 6, 4)
    state = net.init(jax.random.key(2), params, ())
    rows, columns = (
        np.random.default_rng(0).permutation(6),
        np.random.default_rng(1).permutation(4),
    )
    first = jax.tree.map(lambda x: x[:, :, rows], state.cells[0])
    cells = (first, *state.cells[1:])
    cells = (*cells[:-1], jax.tree.map(lambda x: x[:, :, :, columns], cells[-1]))
    _, (want, accuracy) = run(net, params, images, labels, state)
    moved = state._replace(cells=cells)
    got = run(
        net, params, images[..., rows], jnp.asarray(np.argsort(columns))[labels], moved
    )[1]
    np.testing.assert_allclose(got[0], want, rtol=2e-5)
    np.testing.assert_array_equal(got[1], accuracy)
    assert np.std(want) > 1e-4
    # And it is the permutation of the state that does it: without, the outcome is another.
    other = run(
        net, params, images[..., rows], jnp.asarray(np.argsort(columns))[labels], state
    )[1][0]
    assert np.abs(np.asarray(other) - np.asarray(want)).max() > 1e-5


@pytest.mark.parametrize("name", NETS)
@pytest.mark.slow
def test_one_set_of_parameters_for_every_size(name):
    params = NETS[name](6, 4).meta(jax.random.key(0))
    for inputs, outputs in ((3, 2), (9, 7)):
        net = NETS[name](inputs, outputs)
        chex.assert_trees_all_equal_shapes(params, net.meta(jax.random.key(1)))
        images, labels = stream(jax.random.key(1), 3, 1, inputs, outputs)
        assert np.isfinite(run(net, params, images, labels)[1][0]).all()


def test_the_headline_configuration_has_2384_parameters():
    params = mx.vsml((784, 10)).meta(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == 2384
    gates = np.concatenate(
        [
            np.asarray(params["gates"][name])
            for name in ("forward", "backward", "hidden")
        ]
    )
    assert gates.shape == (32, 64)
    # A normal of std 1/sqrt(32), truncated at two of its standard deviations, which leaves .8796 of
    # its own.
    np.testing.assert_allclose(gates.std(), 0.8796 / 32**0.5, rtol=0.05)
    assert np.abs(gates).max() <= 2 / 32**0.5


def test_the_initial_state_is_noise_in_the_first_half_of_the_memory():
    state = mx.vsml((100, 20)).init(jax.random.key(0), (), ())
    ((c, h),) = state.cells
    np.testing.assert_allclose(np.std(c[..., :8]), 0.8796 / 100**0.5, rtol=0.03)
    assert not c[..., 8:].any()
    assert not h.any()


@pytest.mark.slow
def test_a_convolution_with_one_position_is_dense():
    net = mx.vsml([dense(9, 5), dense(5, 3)])
    conv = mx.vsml([convolution((3, 3, 1), 5, kernel=3, stride=3), dense(5, 3)])
    params = net.meta(jax.random.key(0))
    images, labels = stream(jax.random.key(1), 4, 1, 9, 3)
    np.testing.assert_array_equal(
        run(net, params, images, labels)[1], run(conv, params, images, labels)[1]
    )


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [((5, 4, 2), 3, 2), ((4, 6, 1), 3, 1), ((7, 7, 3), 2, 3)],
)
@pytest.mark.slow
def test_the_wiring_of_a_convolution_is_that_of_lax(shape, kernel, stride):
    layer = convolution(shape, 4, kernel=kernel, stride=stride)
    image = jax.random.normal(jax.random.key(0), (2, *shape))
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, shape[2], 4))
    want = jax.lax.conv_general_dilated(
        image, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = layer.split(image.reshape(2, -1, 1))[..., 0]
    got = patches @ w.reshape(-1, 4)
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-4, atol=1e-5)
    # Merging gives back what was split: each unit is the mean of its own copies, except where
    # nothing looks at it.
    seen = layer.merge(jnp.ones((1, layer.positions, layer.inputs, 1)))[0, :, 0] > 0
    back = layer.merge(layer.split(image.reshape(2, -1, 1)))
    np.testing.assert_allclose(
        back[:, seen], image.reshape(2, -1, 1)[:, seen], rtol=1e-6
    )


@pytest.mark.slow
def test_equal_replicas_that_see_equal_examples_are_one():
    one, two = mx.vsml((4, 5, 3)), mx.vsml((4, 5, 3), batch_size=2)
    params = one.meta(jax.random.key(0))
    images, labels = stream(jax.random.key(1), 6, 1, 4, 3)
    want = run(one, params, images, labels)[1]
    got = run(two, params, jnp.repeat(images, 2, 1), jnp.repeat(labels, 2, 1))[1]
    # On GPUs too, where kernels for one and for two would differ by 2e-5 in TF32.
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)


@pytest.mark.slow
def test_replicas_share_the_first_half_and_keep_the_other():
    net = mx.vsml((4, 3), batch_size=3)
    params = net.meta(jax.random.key(0))
    images, labels = stream(jax.random.key(1), 3, 3, 4, 3)
    state, _ = run(net, params, images, labels)
    ((c, _),) = state.cells
    # What the next step starts from is what the step of a single network with the averaged half
    # would start from.
    half = jnp.broadcast_to(c[..., :8].mean(0, keepdims=True), (3, *c.shape[1:-1], 8))
    shared = state._replace(
        cells=jax.tree.map(
            lambda x: x.at[..., :8].set(
                jnp.broadcast_to(x[..., :8].mean((0, 1)), x[..., :8].shape)
            ),
            state.cells,
        )
    )
    np.testing.assert_allclose(shared.cells[0][0][..., :8], half, rtol=1e-6)
    single = mx.vsml((4, 3))
    batch = {"image": images[0], "label": labels[0]}
    got = jax.jit(net.step)(jax.random.key(0), params, state, batch)[0]
    step_alone = jax.jit(single.step)
    for r in range(3):
        alone = jax.tree.map(lambda x, r=r: x[r : r + 1], shared)
        one = jax.tree.map(lambda x, r=r: x[r : r + 1], batch)
        want = step_alone(jax.random.key(0), params, alone, one)[0]
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, r=r: x[r : r + 1], got), want, rtol=1e-5, atol=1e-6
        )
    assert np.abs(np.asarray(c[0, ..., 8:] - c[1, ..., 8:])).max() > 1e-4


@pytest.mark.parametrize("name", ["headline", "two sweeps", "convolution"])
@pytest.mark.slow
def test_what_is_masked_is_not_learned_from(x64, name):
    """Three replicas, the first of which never counts, are two."""

    def make(batch_size):
        cell = lstm_cell(6, 4)
        if name == "convolution":
            layers = [convolution((3, 3, 1), 2, kernel=2, stride=2), dense(8, 3)]
            return mx.vsml(layers, cell, batch_size=batch_size)
        return mx.vsml(
            (9, 5, 3), cell, batch_size=batch_size, backward_pass=name == "two sweeps"
        )

    three, two = make(3), make(2)
    params = three.meta(jax.random.key(0))
    mask = np.array([False, True, True])
    query_mask = np.array([True, False, True, True])
    train = [masks.images(seed, 3, (9,)) for seed in range(3)]
    query = masks.images(9, 4, (9,))

    def outcome(net, edit):
        def run(params):
            key = jax.random.key(5)

            def step(state, batch):
                state, *found = net.step(key, params, state, batch)
                return state, found

            batches = [edit(batch, mask) for batch in train]
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
            state, (losses, metrics) = jax.lax.scan(
                step, net.init(key, params, ()), stacked
            )
            tested = net.test(key, params, state, edit(query, query_mask))
            return losses.sum() + tested[0], (state, losses, metrics, tested)

        return jax.jit(jax.value_and_grad(run, has_aux=True))(params)

    (loss, (state, *others)), grads = outcome(three, masks.spoil)
    want_of_two = outcome(two, masks.keep)
    counted = jax.tree.map(lambda x: x[1:], state)
    got = (loss, (counted, *others)), grads
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_close(got, want_of_two, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_step_without_an_example_changes_nothing(key):
    net = mx.vsml((4, 3), lstm_cell(4, 2), batch_size=2)
    params = net.meta(key)
    images, labels = stream(jax.random.key(1), 1, 2, 4, 3)
    state, _ = run(net, params, images, labels)
    batch = masks.spoil({"image": images[0], "label": labels[0]}, np.zeros(2, bool))

    def loss_after(params):
        new, loss, _ = net.step(key, params, state, batch)
        return loss + net.step(key, params, new, batch)[1], new

    value_and_grad = jax.jit(jax.value_and_grad(loss_after, has_aux=True))
    (loss, new), grads = value_and_grad(params)
    chex.assert_trees_all_equal(new, state)
    assert loss == 0
    assert optax.tree.norm(grads) == 0


@pytest.mark.slow
def test_the_loss_of_a_batch_is_that_of_the_next_prediction():
    net = mx.vsml((4, 5, 3))
    params = net.meta(jax.random.key(0))
    images, labels = stream(jax.random.key(1), 6, 1, 4, 3)
    state, _ = run(net, params, images, labels)
    step = jax.jit(net.step)
    each = [
        step(jax.random.key(0), params, state, {"image": x, "label": y})[1:]
        for x, y in zip(images, labels, strict=True)
    ]
    batch = {"image": images[:, 0], "label": labels[:, 0]}
    losses, metrics = zip(*each, strict=True)
    loss, tested = jax.jit(net.test)(jax.random.key(0), params, state, batch)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    want = np.mean([m["accuracy"] for m in metrics])
    np.testing.assert_allclose(tested["accuracy"], want, rtol=1e-6)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.slow
def test_the_gradient_through_an_episode(norm):
    with jax.enable_x64(True):
        net = mx.vsml((2, 3, 2), lstm_cell(3, 2, layer_norm=norm), backward_pass=True)
        params = jax.tree.map(
            lambda x: x.astype(jnp.float64), net.meta(jax.random.key(0))
        )
        images, labels = stream(jax.random.key(1), 3, 1, 2, 2)
        state = jax.tree.map(
            lambda x: x.astype(jnp.float64), net.init(jax.random.key(2), params, ())
        )
        images = images.astype(jnp.float64)
        check_grads(
            jax.jit(lambda p: run(net, p, images, labels, state)[1][0].mean()),
            (params,),
            1,
            rtol=1e-6,
        )


def test_a_label_that_is_no_class_gives_nan_and_not_a_number_that_looks_right():
    net = mx.vsml((4, 3))
    params = net.meta(jax.random.key(0))
    for label in (3, -1):
        _, (losses, _) = run(net, params, jnp.ones((1, 1, 4)), jnp.full((1, 1), label))
        assert np.isnan(losses).all()


BAD = {
    "no layers": (lambda: mx.vsml(()), ValueError, "layers must be the units"),
    "one size": (lambda: mx.vsml((4,)), ValueError, "layers must be the units"),
    "mixed": (
        lambda: mx.vsml((4, dense(4, 2))),
        ValueError,
        "layers must be the units",
    ),
    "a chain that breaks": (
        lambda: mx.vsml([dense(4, 5), dense(6, 3)]),
        ValueError,
        r"layers\[0\] has 5 outputs and layers\[1\] 6 inputs",
    ),
    "zero units": (lambda: mx.vsml((0, 3)), ValueError, "at least 1"),
    "one class": (lambda: mx.vsml((4, 1)), ValueError, "at least 2 classes"),
    "no cell": (lambda: mx.vsml((4, 3), 16), TypeError, "metajax.cells.lstm"),
    "no ticks": (lambda: lstm_cell(ticks=0), ValueError, "ticks must be at least 1"),
    "reduce": (lambda: lstm_cell(reduce="max"), ValueError, "'mean' or 'sum'"),
    "image size": (
        lambda: run(
            mx.vsml((4, 3)),
            mx.vsml((4, 3)).meta(jax.random.key(0)),
            jnp.ones((2, 1, 5)),
            jnp.zeros((2, 1), int),
        ),
        ValueError,
        r"begin with 4 units, but an image \[5\] has 5",
    ),
    "batch size": (
        lambda: run(
            mx.vsml((4, 3)),
            mx.vsml((4, 3)).meta(jax.random.key(0)),
            jnp.ones((2, 7, 4)),
            jnp.zeros((2, 7), int),
        ),
        ValueError,
        "batch_size is 1",
    ),
    "image shape": (
        lambda: convolution((28, 28), 8),
        ValueError,
        "shape must have 3 numbers",
    ),
    "matrix": (
        lambda: shared_matrix(jnp.ones((2, 3)), jnp.ones((2, 3)), 2, 2),
        ValueError,
        r"w and c must be \[N, N\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
