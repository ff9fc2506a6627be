"""Silences each filter of the digit classifier in turn, and shows what each is worth: the held-out accuracy without it.

    pip install '.[examples]' && python examples/ablate_digits.py --plot ablation.png

Each ablation is a patch of two statements, undone as the `with` block ends. Any backend will do: set KERAS_BACKEND.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "numpy")  # inference needs no more

import keras
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from train_digits import MODEL, split_digits

import kpatch

CONV_LAYERS = ("conv1", "conv2")


def accuracy(model, x, y):
    return float(np.mean(np.argmax(model.predict_on_batch(x), axis=-1) == y))


def ablate(model, x, y):
    """The accuracy without each filter: {"conv1": [...], "conv2": [...]}."""
    filters = [(name, i) for name in CONV_LAYERS for i in range(model.get_layer(name).filters)]
    without = {name: [] for name in CONV_LAYERS}
    for name, i in track(filters, "ablating filters", console=Console(stderr=True), transient=True):
        with kpatch.apply(model, f"{name}.kernel[..., {i}] = 0; {name}.bias[{i}] = 0"):
            without[name].append(accuracy(model, x, y))
    return without


def table(without, intact):
    result = Table()
    for heading, justify in (("layer", "left"), ("filter", "right"), ("accuracy", "right"), ("change", "right")):
        result.add_column(heading, justify=justify)
    rows = [(value, name, i) for name, values in without.items() for i, value in enumerate(values)]
    for value, name, i in sorted(rows):
        style = "red" if value < intact - 0.01 else "green" if value > intact else None
        result.add_row(name, str(i), f"{value:.2%}", f"{value - intact:+.2%}", style=style)
    return result


def plot(without, intact, path):
    import matplotlib

    matplotlib.use("Agg")  # a file, never a window
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(without), 1, figsize=(9, 5), sharey=True, layout="constrained")
    for axis, (name, values) in zip(axes, without.items(), strict=True):
        axis.bar(range(len(values)), [100 * (value - intact) for value in values])
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=f"{name}: change of accuracy without each filter", xlabel="filter", ylabel="percentage points")
        axis.set_xticks(range(len(values)))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="write a bar chart to this PNG file")
    arguments = parser.parse_args()

    model = keras.saving.load_model(MODEL)
    _, (x, y) = split_digits()
    intact = accuracy(model, x, y)
    without = ablate(model, x, y)
    print(f"Accuracy on {len(x)} held-out digits with all filters: {intact:.2%}; without each:")
    Console().print(table(without, intact))
    if accuracy(model, x, y) != intact:
        raise SystemExit("the model is not what it was before")
    if arguments.plot:
        plot(without, intact, arguments.plot)
        print(f"plotted to {arguments.plot}")


if __name__ == "__main__":
    main()
