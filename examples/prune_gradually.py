"""Prunes the digit classifier at once, at once with training after it, and gradually, and plots the accuracies.

    pip install '.[examples]' && KERAS_BACKEND=jax python examples/prune_gradually.py --plot pruned.png

Zhu and Gupta (2017), "To prune, or not to prune", prune by such a polynomial. Needs a backend that can train: jax,
torch or tensorflow.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from train_digits import SEED, build_model, compile_model, split_digits

import kpatch
import kpatch.callbacks

SHARES = (0.9, 0.95, 0.98)
PRUNE = "(conv2|dense_1).kernel[abs(_) < quantile(abs(_), $share)] = 0"


def trained(epochs, data, weights=None, callbacks=()):
    """A model after some epochs, from given weights on; all that are compared have the same optimizer and steps."""
    keras.utils.set_random_seed(SEED)
    model = build_model()
    compile_model(model, keras.optimizers.Adam(2e-3))
    if weights is not None:
        model.set_weights(weights)
    model.fit(*data, batch_size=64, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def accuracies(share, weights, epochs, data, test):
    """On held-out digits: pruned at once; pruned at once, then trained; pruned while it is trained."""
    at_once = trained(0, data, weights)
    kpatch.apply(at_once, PRUNE, share=share)

    held = kpatch.callbacks.PatchCallback({0: PRUNE}, on="epoch_begin", bindings={"share": share}, hold=True)
    then_trained = trained(epochs, data, weights, [held])

    rise = keras.optimizers.schedules.PolynomialDecay(0.0, max(1, (epochs - 1) * 2 // 3), share, power=3)
    gradual = kpatch.callbacks.PatchCallback(PRUNE, on="epoch_begin", bindings={"share": rise}, hold=True)
    gradually = trained(epochs, data, weights, [gradual])

    for model in (then_trained, gradually):
        kpatch.apply(
            model, "for (conv2|dense_1).kernel { assert mean(cast(_ == 0, 'float32')) >= $least }", least=share - 0.02
        )
    return [model.evaluate(*test, verbose=0)[1] for model in (at_once, then_trained, gradually)]


def plot(found, whole, path):
    import matplotlib

    matplotlib.use("Agg")  # a file, never a window
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    places = range(len(found))
    for name, values in zip(
        ("at once", "at once, then trained", "gradually"), zip(*found.values(), strict=True), strict=True
    ):
        axis.plot(places, values, marker="o", label=name)
    axis.axhline(whole, color="grey", linestyle=":", label="not pruned")
    axis.set_xticks(places, [f"{share:.0%}" for share in found])
    axis.set(xlabel="zeros in the kernels of conv2 and dense_1", ylabel="accuracy on held-out digits", ylim=(0, 1.03))
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--plot", type=Path, help="write a line chart to this PNG file")
    arguments = parser.parse_args()

    data, test = split_digits()
    model = trained(arguments.epochs, data)
    whole, weights = model.evaluate(*test, verbose=0)[1], model.get_weights()
    print(f"not pruned: {whole:.1%}")
    found = {share: accuracies(share, weights, arguments.epochs, data, test) for share in SHARES}
    for share, values in found.items():
        once, then, gradually = (f"{value:.1%}" for value in values)
        print(f"{share:.0%} zeros: at once {once}, then trained {then}, gradually {gradually}")
    if arguments.plot:
        plot(found, whole, arguments.plot)


if __name__ == "__main__":
    main()
