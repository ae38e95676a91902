"""Neural art against NumPy, the loader of published weights against the convolutions of lax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from jax import lax

import metajax as mx

WIDTHS = {13: (2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4), 16: (2, 2, 3, 3, *[4] * 12)}


def small_vgg(layers, prefix="features."):
    """Of the layout of torchvision, with few channels; its numbers skip ReLUs and poolings."""
    rng, arrays, inputs, index = np.random.default_rng(0), {}, 3, 0
    blocks = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}[layers]
    widths = iter(WIDTHS[layers])
    for block in blocks:
        for _ in range(block):
            outputs = next(widths)
            arrays[f"{prefix}{index}.weight"] = rng.normal(
                size=(outputs, inputs, 3, 3)
            ).astype(np.float32)
            arrays[f"{prefix}{index}.bias"] = rng.normal(size=outputs).astype(
                np.float32
            )
            inputs, index = outputs, index + 2
        index += 1
    return arrays


@pytest.mark.parametrize(
    ("layers", "prefix"), [(13, "features."), (16, ""), (16, "features.")]
)
@pytest.mark.slow
def test_vgg_is_what_lax_makes_of_the_same_file(tmp_path, layers, prefix):
    arrays = small_vgg(layers, prefix)
    more = (
        {
            f"classifier.{i}.{k}": np.zeros(2, np.float32)
            for i in (0, 3)
            for k in ("weight", "bias")
        }
        if prefix
        else {}
    )
    safetensors.numpy.save_file(arrays | more, tmp_path / "vgg.safetensors")
    weights = mx.problems.load_vgg(tmp_path / "vgg.safetensors", last="conv3_2")
    assert list(weights) == [
        "conv1_1",
        "conv1_2",
        "conv2_1",
        "conv2_2",
        "conv3_1",
        "conv3_2",
    ]
    image = np.random.default_rng(1).random((13, 10, 3)).astype(np.float32)
    got = mx.problems.vgg(weights)(image)
    x = jnp.asarray(
        (image - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    )[None]
    kernels = sorted(
        (int(n.split(".")[-2]), w) for n, w in arrays.items() if n.endswith("weight")
    )
    for (index, w), name in zip(kernels, weights, strict=False):
        if name in ("conv2_1", "conv3_1"):
            x = x[:, : 2 * (x.shape[1] // 2), : 2 * (x.shape[2] // 2)]
            x = (
                x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
            ) / 4
        x = lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
        )
        x = jax.nn.relu(x + arrays[f"{prefix}{index}.bias"])
        np.testing.assert_allclose(got[name], x[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_loss_is_that_of_numpy(key):
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(3, 3, 3, 4)), rng.normal(size=(3, 3, 4, 5))]
    weights = {
        f"conv{i + 1}_1": {"w": jnp.float32(w), "b": jnp.zeros(w.shape[-1])}
        for i, w in enumerate(layers)
    }
    features = mx.problems.vgg(weights)
    problem, tasks = mx.problems.neural_art(
        features, ["conv2_1"], ["conv1_1", "conv2_1"], alpha=2.0, beta=3.0, gamma=0.5
    )
    data = {
        "content": rng.random((1, 8, 8, 3)),
        "style": rng.integers(0, 256, (1, 12, 10, 3)).astype(np.uint8),
    }
    task = tasks.sample(key, jax.tree.map(jnp.asarray, data))
    x = rng.random((8, 8, 3)).astype(np.float32)
    loss, parts = problem.test(key, x, (), tasks.train(key, data, task))

    def grams(image):
        flat = {
            n: np.asarray(f, np.float64).reshape(-1, f.shape[-1])
            for n, f in features(image).items()
        }
        return {n: np.einsum("pi,pj->ij", f, f) / len(f) for n, f in flat.items()}

    have, want = (
        features(x)["conv2_1"],
        features(jnp.float32(data["content"][0]))["conv2_1"],
    )
    content = np.mean((np.asarray(have) - np.asarray(want)) ** 2) / np.mean(
        np.asarray(want) ** 2
    )
    ours, theirs = grams(x), grams(data["style"][0] / np.float32(255))
    style = np.mean(
        [np.mean((ours[n] - theirs[n]) ** 2) / np.mean(theirs[n] ** 2) for n in ours]
    )
    smooth = np.mean((x[1:] - x[:-1]) ** 2) + np.mean((x[:, 1:] - x[:, :-1]) ** 2)
    np.testing.assert_allclose(parts["content"], content, rtol=1e-3)
    np.testing.assert_allclose(parts["style"], style, rtol=1e-3)
    np.testing.assert_allclose(parts["smoothness"], smooth, rtol=1e-4)
    np.testing.assert_allclose(loss, 2 * content + 3 * style + 0.5 * smooth, rtol=1e-3)


def test_an_image_of_the_content_with_the_style_of_itself_has_no_loss_but_smoothness(
    key,
):
    features = mx.problems.vgg(
        {"conv1_1": {"w": jax.random.normal(key, (3, 3, 3, 4)), "b": jnp.zeros(4)}}
    )
    problem, tasks = mx.problems.neural_art(features, ["conv1_1"], ["conv1_1"])
    image = jax.random.uniform(key, (1, 8, 8, 3))
    task = tasks.sample(key, {"content": image, "style": image})
    _, parts = problem.test(key, image[0], (), task)
    assert float(parts["content"]) == float(parts["style"]) == 0
    assert float(parts["smoothness"]) > 0


@pytest.mark.slow
def test_optimisation_brings_the_image_to_both(key):
    k_w, k_content, k_style = jax.random.split(key, 3)
    features = mx.problems.vgg(
        {"conv1_1": {"w": jax.random.normal(k_w, (3, 3, 3, 8)) / 5, "b": jnp.zeros(8)}}
    )
    problem, tasks = mx.problems.neural_art(features, ["conv1_1"], ["conv1_1"])
    data = {
        "content": jax.random.uniform(k_content, (2, 8, 8, 3)),
        "style": jax.random.uniform(k_style, (2, 9, 9, 3)),
    }
    curves = mx.evaluate(
        mx.inner(mx.l2l(optax.adam, problem), tasks, 150), key, 0.03, data, num_tasks=4
    )
    for part in ("content", "style"):
        assert (curves.metrics[part][:, -1] < 0.3 * curves.metrics[part][:, 0]).all(), (
            part
        )


def bad_vgg(tmp_path, arrays):
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    return mx.problems.load_vgg(tmp_path / "x.safetensors")


def test_bad_input(tmp_path, key):
    arrays = small_vgg(16)
    with pytest.raises(ValueError, match=r"no VGG-16 or VGG-19.*15 layers"):
        bad_vgg(tmp_path, {k: v for k, v in arrays.items() if ".34." not in k})
    with pytest.raises(ValueError, match="no VGG-16 or VGG-19"):
        bad_vgg(tmp_path, {k: v for k, v in arrays.items() if k != "features.0.bias"})
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="last must be one of conv1_1"):
        mx.problems.load_vgg(tmp_path / "x.safetensors", last="conv6_1")
    with pytest.raises(FileNotFoundError):
        mx.problems.load_vgg(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"not this")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        mx.problems.load_vgg(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="names such as conv1_1"):
        mx.problems.vgg({"first": {}})
    with pytest.raises(ValueError, match="weights is empty"):
        mx.problems.vgg({})
    weights = {
        f"conv{i}_1": {"w": jnp.ones((3, 3, 3, 3)), "b": jnp.zeros(3)}
        for i in (1, 2, 3)
    }
    with pytest.raises(ValueError, match="too small"):
        mx.problems.vgg(weights)(jnp.ones((3, 3, 3)))
    images = {"content": jnp.ones((1, 8, 8, 3)), "style": jnp.ones((1, 8, 8, 3))}
    _, tasks = mx.problems.neural_art(
        mx.problems.vgg(weights), ["conv9_9"], ["conv1_1"]
    )
    with pytest.raises(ValueError, match="there is no 'conv9_9'"):
        tasks.sample(key, images)
    with pytest.raises(ValueError, match="look at 'style'"):
        tasks.sample(key, {"content": images["content"]})
    with pytest.raises(ValueError, match="alpha"):
        mx.problems.neural_art(mx.problems.vgg(weights), alpha=-1.0)
    with pytest.raises(ValueError, match="content and style"):
        mx.problems.neural_art(mx.problems.vgg(weights), content=())
