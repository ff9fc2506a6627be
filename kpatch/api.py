"""The public functions: `plan`, `apply` and `edit`."""

from functools import lru_cache

from kpatch import execute, planner
from kpatch.errors import ResolutionError, UnsupportedError
from kpatch.planner import Place
from kpatch.syntax import Patch, parse

CACHED_PLANS = 64  # for each model; the least recently used is dropped


def plan(model, patch):
    """What a patch would do to a model: a dry run, checked in full, with nothing written.

    Args:
        model: a built Keras model or layer.
        patch: a `Patch`, or its text.

    Returns:
        A `Plan`; printed, it is a table of statements, variables and entries.

    Raises:
        PatchError: for every error that can be known before the first write, all of them together.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> [row.entries for row in kpatch.plan(model, "dense_1.kernel[:, 1] = 0; dense_1.bias += 1").rows]
        [4, 3]
    """
    return _planned(model, _as_patch(patch))


def apply(model, patch, *, donate=True):
    """Edits the weights of a model in place: all statements of the patch, or on any failure none.

    Args:
        model: a built Keras model or layer.
        patch: a `Patch`, or its text.
        donate: write into the variable's own memory where it alone holds it. With `False` each write makes a new
            array, so that another thread may go on reading the old one (on tensorflow the runtime sees to that by
            itself, for tensors that were read before).

    Returns:
        An `AppliedPatch`, with `.writes` and `.undo()`. As a context manager it undoes the edit on leaving.

    Raises:
        PatchError: with every variable bitwise as it was.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> applied = kpatch.apply(model, "dense_1.kernel[0, 0] = 1.0")
        >>> model.get_weights()[0][0, 0].item()
        1.0
        >>> applied.undo()
    """
    from kpatch import writers

    return execute.apply(_planned(model, _as_patch(patch)), writers.current(), model, donate)


def edit(x, patch):
    """The pure form: a new tensor with the edits of the patch, `x` untouched.

    Works on concrete tensors, and inside `jax.jit`, `tf.function` and `torch.compile`, with gradients to the entries
    left alone and to the values. Compiled, values cannot be looked at, so a conversion that could lose must be
    written as `cast`, and an index computed from a tensor is refused unless it is a mask.

    Args:
        x: a tensor, or what `keras.ops.convert_to_tensor` takes, of a known shape.
        patch: a `Patch`, or its text; every target is `_`.

    Returns:
        A tensor of the backend, of the shape and dtype of `x`.

    Raises:
        PatchError: for anything wrong with the patch, or with its fit to `x`.

    Example:
        >>> import keras, kpatch
        >>> keras.ops.convert_to_numpy(kpatch.edit(keras.ops.ones((2, 3)), "_[0, :] *= 2"))
        array([[2., 2., 2.],
               [1., 1., 1.]], dtype=float32)
    """
    from keras import KerasTensor, backend, ops

    from kpatch.arithmetic import is_traced

    if backend.backend() == "torch":
        import torch

        if torch.compiler.is_dynamo_compiling():
            from kpatch.dynamo import edit_in_graph

            return edit_in_graph(x, patch if isinstance(patch, str) else patch.source)
    patch = _as_patch(patch)
    if isinstance(x, KerasTensor):
        raise UnsupportedError("a symbolic tensor is edited by a layer, which comes with a later version")
    x = ops.convert_to_tensor(x)
    if any(length is None for length in x.shape):
        raise UnsupportedError(f"kpatch.edit needs a known shape. Received: x.shape={tuple(x.shape)}")
    planned = _edit_plan(patch, tuple(x.shape), backend.standardize_dtype(x.dtype), is_traced(x))
    store = execute.Pure(x)
    execute.run(planned, store, traced=is_traced(x))
    return ops.copy(x) if store.tensor is x else store.tensor


def _as_patch(patch):
    if isinstance(patch, Patch):
        return patch
    if isinstance(patch, str):
        return parse(patch)
    raise TypeError(f"a patch is a str or a kpatch.Patch. Received: patch={patch!r} (of type {type(patch)})")


def _planned(model, patch):
    """The plan, from the cache while neither the names nor the variables of the model have changed."""
    from kpatch.resolve import index

    names = index(model)
    cache = vars(names).setdefault("plans", {})  # they go with the index that they were made from
    planned = cache.get(patch)
    if planned is None:
        planned = planner.make(patch, _finder(names))
        if len(cache) >= CACHED_PLANS:
            cache.pop(next(iter(cache)))
        cache[patch] = planned
    return planned


def _finder(names):
    """Gives the `Place` of a selector; one variable is one place, however it is named."""
    by_selector, by_variable = {}, {}

    def find(selector):
        place = by_selector.get(selector)
        if place is None:
            if selector is None:
                raise ResolutionError(
                    "'_' is no variable of a model",
                    notes=["name one, as in 'dense_1.kernel'; '_' is the tensor of kpatch.edit"],
                )
            entry = names.find(selector)
            variable = entry.variable
            place = by_variable.get(id(variable))
            if place is None:
                place = by_variable[id(variable)] = Place(entry.path, entry.shape, _dtype(variable), variable)
            by_selector[selector] = place
        return place

    return find


def _dtype(variable):
    """The dtype that the variable's value has: jax keeps int64 as int32 without x64, torch uint32 as int64."""
    from keras import backend

    held = getattr(variable, "_value", None)
    return variable.dtype if held is None else backend.standardize_dtype(held.dtype)


@lru_cache(maxsize=256)
def _edit_plan(patch, shape, dtype, traced):
    place = Place("_", shape, dtype)

    def find(selector):
        if selector is not None:
            raise ResolutionError(
                f"no variable '{selector}': kpatch.edit knows one tensor, '_'",
            ).locate(selector.span)
        return place

    return planner.make(patch, find, place.unknown(), traced)
