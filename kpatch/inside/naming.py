"""Names of layers with a patch. `model.summary()` shows names and types, so the name describes the patch."""

import re

MAX_NAME = 60  # characters
WORDS = {
    "=": "is", "+=": "plus", "-=": "minus", "*=": "times", "/=": "over", "**=": "to_the",
    "<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne", "::": "by", ":": "to", "...": "all",
}  # fmt: skip


def named_by(text, prefix):
    """A layer's name that describes a patch, in characters that every backend accepts for scopes and modules.

    Example:
        >>> named_by("_[..., 3] = 0; _[:, 1:3] *= 0.5", "scatter_layer")
        'scatter_layer_all_3_is_0_all_1_to_3_times_0p5'
    """
    text = re.sub(r"(?<=[\[,]):(?=[\],])", "all", text[: 4 * MAX_NAME].replace(" ", ""))
    text = re.sub(r"(?<=\d)\.(?=\d)", "p", text)
    text = re.sub(r"(\*\*|[-+*/<>=!])?=|[<>]|::?|\.{3}", lambda match: f"_{WORDS[match[0]]}_", text)
    name = re.sub(r"[^A-Za-z0-9-]+", "_", f"{prefix}_{text}")
    return name[:MAX_NAME].strip("_")


def unique(name):
    """The name, with a number from the second use on, as Keras numbers names."""
    import keras

    number = keras.backend.get_uid(name) - 1
    return f"{name}_{number}" if number else name
