"""Causal tracing: where a small transformer keeps a fact on its way to the answer, as a heat map.

    pip install '.[examples]' && KERAS_BACKEND=jax python examples/trace_facts.py --plot traced.png

The model learns to say, at the last token, a fact about the subject, the second token; the others are noise. A token
sees itself and the one before, so the way is known: the fact must move one token in each block. The trace finds it: for
each block and token, one activation of a run with the right subject is put into a run with a wrong one, and the
probability of the right answer is measured. Needs a backend that can train: jax, torch or tensorflow.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from keras import layers

import kpatch

BLOCKS, TOKENS, SUBJECT, WORDS, WIDTH, SEED = 4, 6, 1, 10, 32, 0


def build_model():
    tokens = keras.Input((TOKENS,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH, name="words")(tokens)
    x = x + layers.Embedding(TOKENS, WIDTH, name="places")(0 * tokens + np.arange(TOKENS))
    near = np.tri(TOKENS, dtype=bool) & ~np.tri(TOKENS, k=-2, dtype=bool)
    for number in range(BLOCKS):
        seen = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, WIDTH // 2)(seen, seen, attention_mask=near[None])
        hidden = layers.Dense(2 * WIDTH, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add(name=f"block_{number}")([x, layers.Dense(WIDTH)(hidden)])
    return keras.Model(tokens, layers.Dense(WORDS, activation="softmax", name="answer")(x[:, -1]))


def facts(count, rng):
    """Prompts, and the fact about the subject of each: a fixed permutation of the words."""
    x = rng.integers(0, WORDS, (count, TOKENS))
    return x, np.random.default_rng(SEED).permutation(WORDS)[x[:, SUBJECT]]


def trained(epochs):
    keras.utils.set_random_seed(SEED)
    model = build_model()
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*facts(4096, np.random.default_rng(SEED + 1)), batch_size=64, epochs=epochs, verbose=0)
    return model


def traced(model, count=64):
    """By how much the right answer becomes more probable, for each block and token that is restored."""
    x, answers = facts(count, np.random.default_rng(SEED + 2))
    wrong = x.copy()
    wrong[:, SUBJECT] = (wrong[:, SUBJECT] + 1) % WORDS

    def probability():
        return model.predict(wrong, batch_size=count, verbose=0)[np.arange(count), answers].mean()

    before = probability()
    with kpatch.record(model, "block_*.output") as clean:
        model.predict(x, batch_size=count, verbose=0)
    return kpatch.sweep(
        model,
        "block_$block.output[:, $token] = $clean._[:, $token]",
        metric=lambda: probability() - before,
        block=range(BLOCKS),
        token=range(TOKENS),
        clean=clean,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--plot", type=Path, help="write the heat map to this PNG file")
    arguments = parser.parse_args()

    model = trained(arguments.epochs)
    accuracy = model.evaluate(*facts(512, np.random.default_rng(SEED + 3)), verbose=0)[1]
    print(f"The model answers {accuracy:.0%} of new prompts rightly")
    effect = traced(model)
    for number, row in enumerate(effect.values):
        print(f"block {number}: " + "  ".join(f"{value:+.2f}" for value in row))
    if arguments.plot:
        figure = effect.plot()
        figure.suptitle("restored: the right answer is more probable by", fontsize=10)
        figure.savefig(arguments.plot, dpi=120)
        print(f"plotted to {arguments.plot}")


if __name__ == "__main__":
    main()
