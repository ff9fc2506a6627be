"""Trains the digit classifier with a fifth of a layer held at zero, beside one that is free, and plots both.

    pip install '.[examples]' && KERAS_BACKEND=jax python examples/hold_digits.py --plot held.png

Needs a backend that can train: jax, torch or tensorflow.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from train_digits import SEED, build_model, compile_model, split_digits

import kpatch

SHARE = 0.2


def train(epochs, held):
    """The held-out accuracy after each epoch."""
    keras.utils.set_random_seed(SEED)
    model = build_model()
    compile_model(model, keras.optimizers.AdamW(2e-3))
    mask = np.random.default_rng(SEED).random((256, 64)) < SHARE
    if held:
        print(kpatch.hold(model, "dense_1.kernel[$mask] = 0", mask=mask))
    (x, y), test = split_digits()
    history = model.fit(x, y, batch_size=32, epochs=epochs, validation_data=test, verbose=0).history
    if held and (model.get_layer("dense_1").get_weights()[0][mask] != 0).any():
        raise SystemExit("an entry that was held has moved")
    return history["val_accuracy"]


def plot(free, held, path):
    import matplotlib

    matplotlib.use("Agg")  # a file, never a window
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(range(1, len(free) + 1), free, label="free")
    axis.plot(range(1, len(held) + 1), held, label=f"{SHARE:.0%} of dense_1.kernel held at 0")
    axis.set(xlabel="epoch", ylabel="accuracy on held-out digits")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--plot", type=Path, help="write a line chart to this PNG file")
    arguments = parser.parse_args()

    free, held = (train(arguments.epochs, held) for held in (False, True))
    print(f"Accuracy on held-out digits after {arguments.epochs} epochs: free {free[-1]:.2%}, held {held[-1]:.2%}")
    if arguments.plot:
        plot(free, held, arguments.plot)
        print(f"plotted to {arguments.plot}")


if __name__ == "__main__":
    main()
