"""The functions that models compile and keep: dropped when what they were traced with begins or ends.

A model keeps one under a name such as `predict_function`, or keras_hub's `generate_function`, and has a method that
makes it, `make_predict_function`. That pair of names is what is looked for.
"""

import gc


def forget_compiled(layers):
    """Drops the compiled functions of the models among some layers; they are traced anew when they are next asked for.

    Example:
        >>> import keras, numpy
        >>> from kpatch.compiled.forgetting import forget_compiled
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> _ = model.predict(numpy.ones((1, 4)), verbose=0)
        >>> model.predict_function is None
        False
        >>> forget_compiled([model])
        >>> model.predict_function is None
        True
    """
    import keras

    for model in layers:
        if isinstance(model, keras.Model):
            names = [name for name in vars(model) if name.endswith("_function") and hasattr(model, f"make_{name}")]
            for name in names:
                setattr(model, name, None)


def layers_of(index):
    """The model of a `ModelIndex`, and the layers in it."""
    return [node.item for node in index.nodes if node.item is not None]


def models_with(layers):
    """All models alive that hold one of the layers, whoever made them.

    A layer does not know them, so all objects of the process are looked through, which takes some 100 ns for each:
    nothing beside the tracing of a function, and too long for what happens often.
    """
    import keras

    held = set(map(id, layers))
    models = [each for each in gc.get_objects() if issubclass(type(each), keras.Model)]
    return [model for model in models if any(id(layer) in held for layer in model._flatten_layers())]
