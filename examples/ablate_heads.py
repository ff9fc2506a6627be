"""Which attention heads copy? Silences each head of a small transformer, and shows what it attended to.

    pip install '.[examples]' && python examples/ablate_heads.py --plot heads.png

The model is trained here, in less than a minute, to go on with a text that repeats itself: random tokens, then the same
again. So the answer is known: what follows a token stands where it stood before, and a head that copies attends there.
Attention patterns are `scores`, and a head is silenced by `heads[:, :, 3] = 0`. Set KERAS_BACKEND to another than jax.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from keras import layers
from rich.console import Console
from rich.table import Table

import kpatch

WORDS, LENGTH = 16, 8  # different tokens, and how many stand before they repeat
BLOCKS, HEADS, WIDTH = 2, 4, 32
STEPS = 2 * LENGTH - 1  # what is given; the last token is only asked for
COPIED = np.arange(LENGTH - 1, STEPS)  # the positions that ask for a token which came before
BEFORE = COPIED - LENGTH + 1  # where it stood


def network():
    tokens, places = keras.Input((STEPS,), dtype="int32"), keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH, name="words")(tokens) + layers.Embedding(STEPS, WIDTH, name="places")(places)
    for block in range(BLOCKS):
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention_{block}")
        x = layers.LayerNormalization(name=f"norm_{block}")(x + attention(x, x, use_causal_mask=True))
    return keras.Model([tokens, places], layers.Dense(WORDS, name="head")(x))


def texts(count, seed):
    """Tokens with their places, and for each the token that follows."""
    once = np.random.default_rng(seed).integers(0, WORDS, (count, LENGTH)).astype("int32")
    whole = np.concatenate([once, once], axis=1)
    places = np.tile(np.arange(STEPS, dtype="int32"), (count, 1))
    return [whole[:, :-1], places], whole[:, 1:]


def train(epochs, count):
    keras.utils.set_random_seed(0)
    model = network()
    x, y = texts(count, seed=0)
    weights = np.zeros(y.shape, "float32")
    weights[:, COPIED] = 1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, sample_weight=weights, batch_size=128, epochs=epochs, verbose=0)
    return model


def accuracy(model, x, y):
    """Of the tokens that came before."""
    answers = keras.ops.convert_to_numpy(keras.ops.argmax(model(x), axis=-1))
    return float((answers == y)[:, COPIED].mean())


def patterns(model, x):
    """The mean attention pattern of each head, (blocks, heads, queries, keys)."""
    with kpatch.record(model, "attention_*.scores", host=True) as recorded:
        model(x)
    return np.stack([recorded[f"attention_{block}.scores"].mean(0) for block in range(BLOCKS)])


def silenced(model, x, y):
    """The accuracy without each head, (blocks, heads)."""
    found = np.zeros((BLOCKS, HEADS))
    for block, head in np.ndindex(found.shape):
        with kpatch.intervene(model, f"attention_{block}.heads[:, :, {head}] = 0"):
            found[block, head] = accuracy(model, x, y)
    return found


def evened(model, x, y, heads):
    """The accuracy if some heads attend to all that came before alike."""
    even = np.tril(np.ones((STEPS, STEPS))) / np.arange(1, STEPS + 1)[:, None]
    patch = [f"attention_{block}.scores[:, {head}] = $even" for block, head in heads]
    with kpatch.intervene(model, "; ".join(patch), bindings={"even": even} if patch else {}):
        return accuracy(model, x, y)


def table(looks_back, without, intact):
    result = Table("head")
    for heading in ("looks back", "accuracy without", "change"):
        result.add_column(heading, justify="right")
    for block, head in np.ndindex(without.shape):
        value = without[block, head]
        style = "red" if value < intact - 0.1 else None
        result.add_row(
            f"{block}.{head}", f"{looks_back[block, head]:.0%}", f"{value:.1%}", f"{value - intact:+.1%}", style=style
        )
    return result


def plot(scores, looks_back, without, intact, path):
    import matplotlib

    matplotlib.use("Agg")  # a file, never a window
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(BLOCKS, HEADS, figsize=(2.3 * HEADS, 2.9 * BLOCKS), layout="constrained")
    for place, axis in np.ndenumerate(axes):
        axis.imshow(scores[place], cmap="Blues", vmin=0, vmax=1)
        axis.plot(BEFORE, COPIED, ".", color="tab:red", markersize=3)
        told = f"looks back {looks_back[place]:.0%}\naccuracy {without[place] - intact:+.1%}"
        axis.set_title(f"head {place[0]}.{place[1]}: {told}", fontsize=8)
        axis.set_xticks(range(0, STEPS, 2))
        axis.set_yticks(range(0, STEPS, 2))
        axis.tick_params(labelsize=6)
    figure.supxlabel("attends to")
    figure.supylabel("position")
    figure.suptitle(f"Attention, and accuracy without each head ({intact:.1%} with all); red: where the answer stands")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="of training (default: 10)")
    parser.add_argument("--texts", type=int, default=8192, help="to train with (default: 8192)")
    parser.add_argument("--plot", metavar="PATH", help="draw the patterns into this file")
    options = parser.parse_args()
    model = train(options.epochs, options.texts)
    x, y = texts(512, seed=1)
    intact = accuracy(model, x, y)
    scores = patterns(model, x)
    looks_back = scores[:, :, COPIED, BEFORE].mean(-1)
    without = silenced(model, x, y)
    console = Console()
    console.print(f"{intact:.1%} of the repeated tokens are right")
    console.print(table(looks_back, without, intact))
    copying, others = np.argwhere(looks_back > 0.5), np.argwhere(looks_back <= 0.5)
    alone, without_them = evened(model, x, y, others), evened(model, x, y, copying)
    console.print(f"{len(copying)} heads look back; {alone:.1%} are right if all others attend to everything alike")
    console.print(f"{without_them:.1%} are right if these {len(copying)} do; by chance {1 / WORDS:.1%}")
    if options.plot:
        plot(scores, looks_back, without, intact, options.plot)


if __name__ == "__main__":
    main()
