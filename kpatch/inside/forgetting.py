"""The functions that models compile and keep: made anew when what they were traced with begins or ends."""

import gc

KEPT = ("train_function", "test_function", "predict_function", "generate_function")  # the last by keras_hub


def forget_compiled(layers):
    """Makes the compiled functions of the models among some layers anew; they are traced when they are next called.

    At once, since `fit` looks for the function at each step, and this may be a callback of it.

    Example:
        >>> import keras, numpy
        >>> from kpatch.inside.forgetting import forget_compiled
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> _ = model.predict(numpy.ones((1, 4)), verbose=0)
        >>> before = model.predict_function
        >>> forget_compiled([model])
        >>> model.predict_function is before
        False
    """
    import keras

    for model in layers:
        if isinstance(model, keras.Model):
            for name in KEPT:
                make = getattr(model, f"make_{name}", None)
                if make is not None and getattr(model, name, None) is not None:
                    setattr(model, name, None)
                    make()


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
    models = [each for each in gc.get_objects() if issubclass(type(each), keras.Model) and "_layers" in vars(each)]
    return [model for model in models if any(id(layer) in held for layer in model._flatten_layers())]
