"""What patched layers and held weights cost, as ratios in one run: `python benchmarks/compiled.py`.

    python benchmarks/compiled.py --backend jax torch --quick

Each backend runs in a process of its own, and compiled as Keras compiles: by XLA on jax, by `tf.function` with and
without XLA; on torch eager, and by `torch.compile` where there is a C++ compiler. Forward and backward are one call;
contestants take turns, as in `run.py`, whose tables these are.
"""

import argparse
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from measure import Row, race

SHAPE = (1024, 4096)
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}  # or page faults are measured
QUICK = False


def compilers():
    """How the backend compiles: `{name: a decorator}`."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return {"jit": jax.jit}
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return {"tf.function": tf.function, "tf.function, XLA": lambda f: tf.function(f, jit_compile=True)}
    import torch

    return {"eager": lambda f: f, **({"torch.compile": torch.compile} if cxx() else {})}


def cxx():
    """The C++ compiler that `torch.compile` calls, or `None`."""
    return shutil.which(os.environ.get("CXX", "g++"))


def forward_and_backward(layer, x, variables=()):
    """A call without arguments for each compiler: the layer on `x`, and the gradients of it and of the variables."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        x = x.detach().requires_grad_()
        seed = torch.ones_like(layer(x))

        def call(function):
            function(x).backward(seed)
            x.grad = None
            for variable in variables:
                variable.value.grad = None

        made = {name: compile_(layer) for name, compile_ in compilers().items()}
        return {name: functools.partial(call, function) for name, function in made.items()}
    seed = keras.ops.ones_like(layer(x))
    if backend == "jax":
        import jax

        def both(x, values, seed):
            def output(x, values):
                with keras.StatelessScope(list(zip(variables, values, strict=True))):
                    return layer(x)

            y, back = jax.vjp(output, x, values)
            return y, back(seed)

        values = [variable.value for variable in variables]
        jitted = jax.jit(both)
        return {"jit": lambda: jax.block_until_ready(jitted(x, values, seed))}
    import tensorflow as tf

    def taped(x, seed):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return y, tape.gradient(y, [x, *[variable.value for variable in variables]], seed)

    made = {name: compile_(taped) for name, compile_ in compilers().items()}
    return {name: (lambda function=function: function(x, seed)) for name, function in made.items()}


def by_hand():
    """The best layer for `_[..., 3] = 0` that was found by hand on the backend."""
    import keras

    class ByHand(keras.layers.Layer):
        def call(self, inputs):
            return EDITS[keras.backend.backend()](inputs)

    return ByHand()


def in_jax(x):
    return x.at[..., 3].set(0)


def in_torch(x):
    y = x.clone()
    y[..., 3] = 0
    return y


def in_tensorflow(x):
    import tensorflow as tf

    zeros = tf.zeros([tf.shape(x)[0]])
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=x, begin=[0, 3], end=[0, 4], strides=[1, 1], value=zeros, begin_mask=1, end_mask=1, shrink_axis_mask=2
    )


EDITS = {"jax": in_jax, "torch": in_torch, "tensorflow": in_tensorflow}


def bare_copy():
    """One pass over the tensor, and one over its gradient; a compiler would take a `copy` out."""
    return lambda x: x * 2.0


def bench_scatter():
    import keras

    from kpatch.layers import ScatterLayer

    layer = ScatterLayer("_[..., 3] = 0")
    layer.build((None, SHAPE[1]))
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).random(SHAPE).astype("float32"))
    made = {
        name: forward_and_backward(f, x) for name, f in (("kpatch", layer), ("hand", by_hand()), ("copy", bare_copy()))
    }
    for compiler in made["kpatch"]:
        times = race({name: calls[compiler] for name, calls in made.items()}, 1 if QUICK else 6)
        ours = times["kpatch"] * 1e3
        yield Row(f"ScatterLayer, a layer by hand ({compiler})", ours, times["hand"] * 1e3, "ms", limit=1.1)
        yield Row(f"ScatterLayer, a copy ({compiler})", ours, times["copy"] * 1e3, "ms", limit=1.3)


def bench_patched():
    import keras

    from kpatch.layers import PatchedLayer

    dense = keras.layers.Dense(4096)
    dense.build((None, SHAPE[1]))
    layer = PatchedLayer(dense, "kernel[0, 0] = 1.0")
    layer.build((None, SHAPE[1]))
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).random(SHAPE).astype("float32"))
    plain, patched = (forward_and_backward(f, x, dense.trainable_variables) for f in (dense, layer))
    for compiler in plain:
        times = race({"kpatch": patched[compiler], "plain": plain[compiler]}, 2 if QUICK else 10)
        ours, base = times["kpatch"] * 1e3, times["plain"] * 1e3
        yield Row(f"PatchedLayer(Dense(4096)) ({compiler})", ours, base, "ms", limit=1.15)


def bench_hold():
    """A training step of ResNet50 with 10 % of its kernels held by masks, and without."""
    import keras

    import kpatch

    size = 64
    x = np.random.default_rng(0).random((8, size, size, 3)).astype("float32")
    y = np.zeros((8,), "int32")

    def step(held):
        model = keras.applications.ResNet50(weights=None, input_shape=(size, size, 3), classes=10)
        model.compile("adam", "sparse_categorical_crossentropy")
        if held:
            rng = np.random.default_rng(0)
            kernels = {f"k{i}": layer for i, layer in enumerate(model.layers) if hasattr(layer, "kernel")}
            text = "\n".join(f'"{layer.name}".kernel[${name}] = _' for name, layer in kernels.items())
            kpatch.hold(model, text, **{n: rng.random(layer.kernel.shape) < 0.1 for n, layer in kernels.items()})
        return lambda: model.train_on_batch(x, y)

    times = race({"kpatch": step(True), "plain": step(False)}, 4 if QUICK else 20)
    yield Row("hold, a step of ResNet50", times["kpatch"] * 1e3, times["plain"] * 1e3, "ms", limit=1.1)


def transformer(width=256, tokens=64, blocks=4):
    """A small language model without words: its blocks, and a batch of inputs."""
    import keras
    from keras import layers

    inputs = x = keras.Input((tokens, width))
    for number in range(blocks):
        seen = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, width // 4)(seen, seen)
        hidden = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add(name=f"block_{number}")([x, layers.Dense(width)(hidden)])
    return keras.Model(inputs, x), np.random.default_rng(0).random((16, tokens, width), "float32")


def bench_intervene():
    """A call in a block with one vector, one in a block that records, and eight ablations, for each compiler."""
    for name, compile_ in compilers().items():
        if "XLA" not in name:  # which hands out nothing of a function of the user's on tensorflow
            yield from intervened(name, compile_)


def intervened(name, compile_):
    import keras

    import kpatch

    (model, x), (recorded, _) = transformer(), transformer()
    x = keras.ops.convert_to_tensor(x)
    plain, patched, record = (compile_(lambda x, model=model: model(x)) for model in (model, model, recorded))

    def call(function=plain):
        return keras.ops.convert_to_numpy(function(x))[0, 0, 0]

    block = kpatch.intervene(model, "block_1.output += $v", v=np.ones(256, "float32"))

    def inside():
        with block:
            call(patched)

    seconds = 1 if QUICK else 6
    times = race({"kpatch": inside, "plain": call}, seconds)
    yield Row(f"intervene, one vector ({name})", times["kpatch"] * 1e3, times["plain"] * 1e3, "ms", limit=1.05)
    with kpatch.record(recorded, "block_*.output"):
        times = race({"kpatch": lambda: call(record), "plain": call}, seconds)
    yield Row(f"record, all blocks ({name})", times["kpatch"] * 1e3, times["plain"] * 1e3, "ms", limit=1.2)

    def swept():
        kpatch.sweep(model, "block_1.output[:, $t] = 0", metric=call, t=range(8))

    times = race({"kpatch": swept, "plain": lambda: [call() for _ in range(8)]}, seconds)
    yield Row(f"sweep, eight ablations ({name})", times["kpatch"] * 1e3, times["plain"] * 1e3, "ms", limit=1.5)


BENCHMARKS = {"scatter": bench_scatter, "patched": bench_patched, "hold": bench_hold, "intervene": bench_intervene}


def measured(backend, only, quick):
    """The rows of a backend, from a process of its own."""
    root = Path(__file__).parent.parent
    command = [sys.executable, __file__, "--worker", "--only", *only, *["--quick"] * quick]
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(root), **KEPT}
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return [Row(**row) for row in json.loads(ran.stdout.splitlines()[-1])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        globals()["QUICK"] = arguments.quick
        rows = [dataclasses.asdict(row) for name in arguments.only for row in BENCHMARKS[name]()]
        print(json.dumps(rows))
        return
    print(f"{'backend':<12}{'measure':<48}{'kpatch':>10}{'baseline':>10}{'ratio':>8}{'target':>9}  met")
    for backend in arguments.backend:
        for row in measured(backend, arguments.only, arguments.quick):
            figures = f"{row.kpatch:>10.2f}{row.baseline:>10.2f}{row.ratio:>8.2f}{row.target:>9}"
            print(f"{backend:<12}{row.measure:<48}{figures}  {'yes' if row.met else 'no'}", flush=True)
        if backend == "torch" and not cxx():
            print(f"{backend:<12}torch.compile is left out: it needs a C++ compiler, and $CXX or g++ is none")


if __name__ == "__main__":
    main()
