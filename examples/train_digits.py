"""Trains the classifier of handwritten digits that the other examples edit, and saves it as digits.keras.

    pip install '.[examples]' && KERAS_BACKEND=jax python examples/train_digits.py

Any backend that can train will do (jax, torch, tensorflow). The file in the repository was made by this script with
Keras 3.8, since an older Keras does not read what a newer one writes.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

MODEL = Path(__file__).with_name("digits.keras")
SEED = 0


def split_digits():
    """Scikit-learn's 1,797 digits of 8×8 pixels in [0, 1]: (x_train, y_train), (x_test, y_test)."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    return (x_train, y_train), (x_test, y_test)


def build_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="pixels"),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="conv2"),
            keras.layers.MaxPooling2D(2, name="pool"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dropout(0.3, seed=SEED, name="dropout"),
            keras.layers.Dense(64, activation="relu", name="dense_1"),
            keras.layers.Dense(10, activation="softmax", name="head"),
        ],
        name="digits",
    )


def compile_model(model, optimizer):
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=MODEL)
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()

    keras.utils.set_random_seed(SEED)
    (x_train, y_train), (x_test, y_test) = split_digits()
    model = build_model()
    compile_model(model, keras.optimizers.Adam(2e-3))
    model.fit(x_train, y_train, batch_size=32, epochs=arguments.epochs, verbose=2)
    compile_model(model, keras.optimizers.SGD(1e-3))  # Adam's moments would make the file three times as large
    accuracy = float(np.mean(np.argmax(model.predict(x_test, verbose=0), axis=-1) == y_test))
    model.save(arguments.output)
    print(f"{arguments.output}: accuracy {accuracy:.4f} on {len(x_test)} held-out digits")


if __name__ == "__main__":
    main()
