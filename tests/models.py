"""Small models of many kinds, for the tests."""

import keras
import numpy as np


def dense(dtype=None):
    """Two dense layers; `dense_1` has a (4, 3) kernel."""
    layers = [keras.layers.Dense(3, name="dense_1", dtype=dtype), keras.layers.Dense(2, name="dense_2", dtype=dtype)]
    return filled(keras.Sequential([keras.Input((4,)), *layers], name="net"))


def mixed():
    """A functional model: nested, with an LSTM, attention, an embedding and a batch normalisation."""
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="proj")], name="inner")
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(11, 8, name="embed")(tokens)
    x = keras.layers.Bidirectional(
        keras.layers.LSTM(4, return_sequences=True, recurrent_initializer="zeros"), name="bi"
    )(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = inner(keras.layers.GlobalAveragePooling1D(name="pool")(x))
    return filled(keras.Model(tokens, keras.layers.Dense(2, name="head")(x), name="mixed"))


class Subclassed(keras.Model):
    """A subclassed model whose attributes are not its layers' names."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.encoder = keras.Sequential([keras.layers.Dense(4, name="first")], name="enc")
        self.blocks = [keras.layers.Dense(4, name="block_a"), keras.layers.Dense(4, name="block_b")]

    def call(self, x):
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return x


def subclassed():
    model = Subclassed()
    model.build((None, 3))
    model(np.zeros((1, 3), "float32"))
    return filled(model)


def chain(*names, seed=0):
    """Dense layers of width 3, with these names."""
    made = [keras.layers.Dense(3, name=name) for name in names]
    return filled(keras.Sequential([keras.Input((3,)), *made], name="net"), seed)


def normalised():
    """Two dense layers, `a` and `b`, and a batch normalisation between them."""
    a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
    return keras.Sequential([keras.Input((4,)), a, keras.layers.BatchNormalization(name="norm"), b])


def filled(model, seed=0):
    """The model with values that are exact in every floating dtype."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "seed" not in variable.name and "float" in variable.dtype:
            variable.assign(np.round(rng.normal(size=variable.shape) * 8).astype("float32") / 8)
    return model


def snapshot(model):
    """The bits of every variable."""
    return [np.array(keras.ops.convert_to_numpy(v)).tobytes() for v in model.variables]


@keras.saving.register_keras_serializable(package="tests")
class Generator(keras.Model):
    """Generates step by step by a function that it compiles and keeps, as the language models of keras_hub do."""

    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.generate_function = None

    def call(self, x):
        return self.backbone(x)

    def generate_step(self, x):
        for _ in range(3):
            for layer in self.backbone.layers:  # past the backbone's own call, as with a cache of keys and values
                x = layer(x)
        return x

    def make_generate_function(self):
        if self.generate_function is None:
            self.generate_function = self._compiled()
        return self.generate_function

    def _compiled(self):
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            return tf.function(self.generate_step)
        if backend != "jax":
            return self.generate_step
        import jax

        @jax.jit
        def compiled(x, weights):
            with keras.StatelessScope(zip(self.variables, weights, strict=True)):
                return self.generate_step(x)

        return lambda x: compiled(x, [v.value for v in self.variables])

    def generate(self, x):
        x = keras.ops.convert_to_tensor(x)
        return np.array(keras.ops.convert_to_numpy(self.make_generate_function()(x)))


def generator():
    """A `Generator` of two layers, `a` and `b`, of width 4."""
    layers = [keras.layers.Dense(4, name="a"), keras.layers.Dense(4, name="b")]
    model = Generator(keras.Sequential([keras.Input((4,)), *layers], name="backbone"), name="generator")
    model(np.zeros((1, 4), "float32"))
    return filled(model)


def gradient(function, x):
    """The gradient of a function with respect to a tensor, as an array."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.array(jax.grad(function)(x))
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = function(x)
        return tape.gradient(loss, x).numpy()
    x = x.detach().requires_grad_()
    function(x).backward()
    return x.grad.numpy()
