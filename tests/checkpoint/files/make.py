"""Makes the files of a version of Keras in the directory of this script: `KERAS_BACKEND=numpy python make.py`.

It runs where that version is installed; `pip install --no-deps --target DIRECTORY keras==3.5.0` and PYTHONPATH suffice.
The parts of Keras are small here, and many: each kind of layer that has kept its weights in a way of its own.
"""

import sys
from pathlib import Path

import keras
import numpy as np

layers = keras.layers
FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
FOLDER = FOLDER if FOLDER.is_dir() else FOLDER.parent


def filled(model):
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "float" in str(variable.dtype):
            variable.assign(np.round(rng.normal(size=variable.shape) * 8).astype("float32") / 8)
    return model


def texts():
    """Embedding, Bidirectional LSTM, a nested model, a seed, and an optimizer with its slots."""
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 4, name="embed")(tokens)
    lstm = layers.LSTM(2, return_sequences=True, recurrent_initializer="zeros")
    x = layers.LayerNormalization(name="norm")(layers.Bidirectional(lstm, name="bi")(x))
    inner = [keras.Input((6, 4)), layers.Dense(4, name="proj"), layers.Dropout(0.5, seed=1)]
    model = keras.Model(tokens, keras.Sequential(inner, name="inner")(x), name="texts")
    model.compile(keras.optimizers.SGD(0.5, momentum=0.5), "mse")
    model.optimizer.build(model.trainable_variables)
    filled(model)
    for number, variable in enumerate(model.optimizer.variables[2:]):
        variable.assign(np.full(variable.shape, number / 4, "float32"))
    return model


def images():
    """Convolutions, BatchNormalization, a layer that is used twice, and a nested model."""
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(inputs))
    twice = layers.Dense(4, name="twice")
    x = twice(twice(x))
    inner = keras.Sequential([keras.Input((4, 4, 4)), layers.Dense(3, name="proj")], name="inner")
    return filled(keras.Model(inputs, layers.Dense(2, name="head")(inner(x)), name="images"))


def codes():
    """A model that is quantised to int8, if the version can do so."""
    x = keras.Input((4,))
    model = filled(keras.Model(x, layers.Dense(3, name="head")(x), name="codes"))
    model.quantize("int8")
    return model


name = f"keras-{keras.__version__}"
texts().save(FOLDER / f"{name}.keras")
images().save_weights(FOLDER / f"{name}.weights.h5")
images().save(FOLDER / f"{name}.h5")
codes().save(FOLDER / f"{name}-int8.keras")
