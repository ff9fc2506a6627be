"""Makes the file of a version of Keras: `KERAS_BACKEND=numpy python tests/files/make.py keras-3.5.0.keras`.

It runs where that version is installed; `pip install --no-deps --target DIRECTORY keras==3.5.0` and PYTHONPATH suffice.
"""

import sys

import keras
import numpy as np

layers = keras.layers
tokens = keras.Input((6,), dtype="int32")
x = layers.Embedding(11, 8, name="embed")(tokens)
lstm = layers.LSTM(4, return_sequences=True, recurrent_initializer="zeros")
x = layers.LayerNormalization(name="norm")(layers.Bidirectional(lstm, name="bi")(x))
x = layers.GlobalAveragePooling1D(name="pool")(x)
inner = [keras.Input((8,)), layers.Dense(8, name="proj"), layers.Dropout(0.5, seed=1)]
x = keras.Sequential(inner, name="inner")(x)
model = keras.Model(tokens, layers.Dense(2, name="head")(x), name="old")
rng = np.random.default_rng(0)
for variable in model.weights:
    if "float" in variable.dtype:
        variable.assign(np.round(rng.normal(size=variable.shape) * 8).astype("float32") / 8)
model.save(sys.argv[1])
