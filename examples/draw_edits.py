"""Draws where four statements edit the digit classifier, and by how much.

pip install '.[examples]' && python examples/draw_edits.py docs/pictures/edits.png
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "numpy")

import keras

import kpatch

PATCH = """
conv1.kernel[..., 3] = 0
conv2.kernel[..., ::2] = clip(_, -0.1, 0.1)
dense_1.kernel[abs(_) < 0.05] = 0
head.kernel[:, [3, 8]] = head.kernel[:, [8, 3]]
"""


def main(path):
    model = keras.saving.load_model(Path(__file__).with_name("digits.keras"))
    with kpatch.apply(model, PATCH) as applied:
        figure = applied.plot()
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "edits.png")
