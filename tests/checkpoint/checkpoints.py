"""Models of many architectures, as they are saved, and how they are compared: for the tests of files."""

import keras
import numpy as np
from models import dense, filled, mixed

layers = keras.layers


def functional(*stack, shape=(8,), name="net", dtype=None):
    x = inputs = keras.Input(shape, dtype=dtype)
    for layer in stack:
        x = layer(x)
    return filled(keras.Model(inputs, x, name=name))


def conv():
    stack = [layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm"), layers.Flatten()]
    return functional(*stack, layers.Dense(2, name="head"), shape=(8, 8, 3))


def lstm():
    return functional(layers.LSTM(4, name="lstm", recurrent_initializer="zeros"), shape=(5, 3))


def bidirectional():
    inner = layers.LSTM(4, return_sequences=True, recurrent_initializer="zeros")
    return functional(layers.Bidirectional(inner, name="bi"), layers.GRU(3, name="gru"), shape=(5, 3))


def attention():
    x = keras.Input((5, 8))
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    return filled(keras.Model(x, layers.LayerNormalization(name="norm")(y + x)))


def nested():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="proj"), layers.Dense(8)], name="inner")
    x = keras.Input((8,))
    return filled(keras.Model(x, layers.Dense(2, name="head")(inner(x))))


def shared():
    a, b, layer = keras.Input((4,)), keras.Input((4,)), layers.Dense(3, name="twice")
    return filled(keras.Model([a, b], layers.Dense(1, name="head")(layers.Concatenate()([layer(a), layer(b)]))))


def embedding():
    stack = [layers.Embedding(11, 8, name="embed"), layers.GlobalAveragePooling1D(), layers.Dense(2, name="head")]
    return functional(*stack, shape=(5,), dtype="int32")


def time_distributed():
    return functional(layers.TimeDistributed(layers.Dense(3, name="inner"), name="timed"), shape=(5, 4))


def mobilenet():
    return filled(keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=4))


def int8():
    model = functional(layers.Dense(8, name="first"), layers.Dense(3, name="head"))
    model.quantize("int8")
    return model


def float8():
    model = functional(layers.Dense(8, name="first"), layers.Dense(3, name="head"))
    model.quantize("float8")
    return model


def lora():
    model = functional(layers.Dense(8, name="first"), layers.Dense(3, name="head"))
    model.get_layer("first").enable_lora(2)
    return model


def mixed_bfloat16():
    stack = [layers.Dense(8, name="first", dtype="mixed_bfloat16"), layers.Dense(3, name="head", dtype="bfloat16")]
    return functional(*stack)


def float16():
    return functional(layers.Dense(8, name="first", dtype="float16"), layers.Dense(3, name="head", dtype="float64"))


def seeded():
    return functional(layers.Dense(8, name="first"), layers.Dropout(0.5, seed=1), layers.Dense(3, name="head"))


def separable():
    stack = [
        layers.SeparableConv1D(4, 2, name="sep"),
        layers.DepthwiseConv1D(2, name="depth"),
        layers.UnitNormalization(),
    ]
    return functional(*stack, layers.ConvLSTM1D(2, 2, name="cl") if False else layers.Flatten(), shape=(6, 3))


def normalized():
    stack = [layers.GroupNormalization(2, name="group"), layers.PReLU(name="prelu"), layers.EinsumDense("ab,bc->ac", 3)]
    return functional(*stack)


def trained():
    model = dense()
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


class Encoder(keras.Model):
    """A class of somebody's own, whose layers are called otherwise than its attributes."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.encoder = keras.Sequential([layers.Dense(units, name="first")], name="enc")
        self.blocks = [layers.Dense(units, name="block_a"), layers.Dense(units, name="block_b")]

    def build(self, shape):
        for layer in (self.encoder, *self.blocks):
            layer.build(shape)
            shape = (None, self.units)

    def call(self, x):
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return x

    def get_config(self):
        return {"name": self.name, "units": self.units}


def subclassed():
    model = Encoder()
    model.build((None, 3))
    return filled(model)


MODELS = {
    each.__name__: each
    for each in (
        dense, conv, lstm, bidirectional, attention, nested, shared, embedding, time_distributed, mobilenet, int8,
        float8, lora, mixed_bfloat16, float16, seeded, separable, normalized, trained, mixed,
    )
}  # fmt: skip


def bits(model):
    """The bits of every weight, by its path."""
    return [(v.path, np.asarray(keras.ops.convert_to_numpy(v)).tobytes()) for v in model.weights]
