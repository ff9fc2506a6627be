"""Steers the digit classifier: adds the direction of one digit to a hidden activation, more and more of it.

    pip install '.[examples]' && python examples/steer_digits.py --digit 7 --plot steering.png

The direction is the mean activation of that digit, less that of the others. On a backend that can train (set
KERAS_BACKEND to jax, torch or tensorflow), a direction of the same length is also learnt, as the one weight of a
ScatterLayer. The classifier itself never changes: the models are rewritten ones that share its weights.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "numpy")  # enough for all but the learning

import keras
import numpy as np
from train_digits import MODEL, SEED, split_digits

import kpatch.layers

STRENGTHS = np.linspace(0, 2, 9)
PATCH = "dense_1.output = _ + $strength * $direction"


def predicted(model, x):
    return np.argmax(model.predict_on_batch(x), axis=-1)


def mean_direction(model, x, y, digit):
    hidden = keras.Model(model.inputs, model.get_layer("dense_1").output).predict_on_batch(x)
    return np.asarray(hidden[y == digit].mean(0) - hidden[y != digit].mean(0), "float32")


def learnt_direction(model, x, digit, length):
    """The direction that most makes the model say the digit, from training nothing but the value in a layer."""
    layer = kpatch.layers.ScatterLayer("_ = _ + $v", bindings={"v": np.zeros(64)}, trainable_values=True)
    hidden = model.get_layer("dense_1").output
    learner = keras.Model(model.inputs, model.get_layer("head")(layer(hidden)))
    for each in model.layers:
        each.trainable = False
    learner.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    keras.utils.set_random_seed(SEED)
    learner.fit(x, np.full(len(x), digit), epochs=5, batch_size=64, verbose=0)
    [found] = layer.get_weights()
    return found * length / np.linalg.norm(found)


def scan(model, x, y, digit, direction):
    """For each strength: how often the digit is said, and the accuracy."""
    for strength in STRENGTHS:
        steered = kpatch.rewrite(model, PATCH, strength=float(strength), direction=direction)
        said = predicted(steered, x)
        yield float(np.mean(said == digit)), float(np.mean(said == y))


def plot(results, digit, path):
    import matplotlib

    matplotlib.use("Agg")  # a file, never a window
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, rows), style in zip(results.items(), ("-", "--"), strict=False):
        said, right = zip(*rows, strict=True)
        axis.plot(STRENGTHS, said, style, color="tab:red", label=f"says {digit}, {name} direction")
        axis.plot(STRENGTHS, right, style, color="tab:blue", label=f"accuracy, {name} direction")
    axis.set(xlabel="strength", ylabel="fraction of held-out digits", title="dense_1.output = _ + strength * direction")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digit", type=int, default=7, choices=range(10))
    parser.add_argument("--plot", type=Path, help="write a line chart to this PNG file")
    arguments = parser.parse_args()

    model = keras.saving.load_model(MODEL)
    (x_train, y_train), (x, y) = split_digits()
    before = predicted(model, x)
    directions = {"mean": mean_direction(model, x_train, y_train, arguments.digit)}
    if keras.backend.backend() != "numpy":
        length = np.linalg.norm(directions["mean"])
        directions["learnt"] = learnt_direction(model, x_train, arguments.digit, length)
    results = {name: list(scan(model, x, y, arguments.digit, value)) for name, value in directions.items()}
    for name, rows in results.items():
        for strength, (said, right) in zip(STRENGTHS, rows, strict=True):
            print(
                f"{name} direction, strength {strength:.1f}: says {arguments.digit} {said:6.1%}, accuracy {right:6.1%}"
            )
    if (predicted(model, x) != before).any():
        raise SystemExit("the model is not what it was before")
    if arguments.plot:
        plot(results, arguments.digit, arguments.plot)
        print(f"plotted to {arguments.plot}")


if __name__ == "__main__":
    main()
