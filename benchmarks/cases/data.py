"""Drawing batches inside the compiled program, against gathering them on the host."""

import jax
import numpy as np

import metajax as mx
from benchmarks.measure import Program, contest
from benchmarks.table import Row, Setting, compared

WAYS = 20


def data_loading(setting: Setting) -> list[Row]:
    """Support and query sets of few-shot episodes, on data of Omniglot's size.

    The host's form is given the indices for nothing: it gathers, scales and copies to the device.
    """
    classes = 20 if setting.smoke else 1_200
    num_tasks = 2 if setting.smoke else 32
    shape = (20 * classes, 28, 28, 1)
    image = np.random.default_rng(0).integers(
        0,
        256,
        shape,
        np.uint8,
    )
    label = np.repeat(np.arange(classes), 20)
    data = mx.data.by_class({"image": image, "label": label})
    tasks = mx.tasks.episodes(WAYS, shots=1, queries=5)
    keys = jax.random.split(jax.random.key(0), num_tasks)

    def ours(keys, data):
        def draw(key):
            task = tasks.sample(key, data)
            return tasks.train(key, data, task), tasks.test(key, data, task)

        return jax.vmap(draw)(keys)

    sample = jax.jit(jax.vmap(tasks.sample, (0, None)))
    drawn = jax.device_get(sample(keys, data))

    def host():
        return gather(drawn["support"]), gather(drawn["query"])

    def gather(index):
        index = index.reshape(num_tasks, -1)
        classes = np.arange(WAYS, dtype=np.int32)
        label = np.repeat(classes, index.shape[1] // WAYS)
        batch = {
            "image": data["image"][index].astype(np.float32) / 255,
            "label": np.tile(label, (num_tasks, 1)),
        }
        return jax.device_put(batch)

    # Read as bytes, written as float32; most of the data is not touched.
    pixels = num_tasks * WAYS * 6 * 28 * 28
    programs = {
        "ours": Program(ours, (keys, data), moved_bytes=5 * pixels),
        "NumPy gather and copy": Program(host, (), jit=False),
    }
    found = contest(programs, setting.limits, rounds=setting.rounds)
    return [
        compared(
            "data_loading", f"{num_tasks} episodes, {WAYS} ways, 6 images each", found
        )
    ]


CASES = (data_loading,)
