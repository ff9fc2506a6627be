"""The public functions: `plan`, `apply` and `edit`."""

import reprlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kpatch import backends, execute, keywords, live, planner
from kpatch.compiled import in_dynamo
from kpatch.errors import PatchError, ResolutionError, UnsupportedError
from kpatch.patches import PatchLike, bound
from kpatch.resolve.bindings import Bindings
from kpatch.resolve.names import ModelNames, Place, TensorNames
from kpatch.tensors import of_variable
from kpatch.undo import AppliedPatch
from kpatch.values.dtypes import tensor
from kpatch.values.numerics import from_numpy, is_traced

if TYPE_CHECKING:
    import keras

MAX_LISTED = 8  # variables listed where their number is not the one expected
CACHED_PLANS = 64  # for each model; the least recently used is dropped


@keywords.checked("kpatch.plan")
def plan(model: "keras.Layer", patch: PatchLike, /, *, expect: int | None = None, **bindings: Any) -> planner.Plan:
    """What a patch would do to a model: a dry run, checked in full, with nothing written.

    Args:
        model: a built Keras model or layer.
        patch: a text, a `Patch`, a path of a patch file, a `Diff`, or a list of these.
        expect: how many variables the patch must match; another number is an error.
        bindings: the values of the patch's `$names`, as for `apply`.

    Returns:
        A `Plan`; printed, it is a table of statements, variables and entries, with warnings below. It is a snapshot:
        entries are counted now, and it stays as it is when the model changes.

    Raises:
        PatchError: for every error that can be known before the first write, all of them together.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> [row.entries for row in kpatch.plan(model, "dense_1.kernel[:, 1] = 0; dense_1.bias += 1").rows]
        [4, 3]
    """
    backend = backends.current()
    backend.refuse_traces("kpatch.plan")
    return live.count(check(model, *bound(patch, bindings), expect), backend, model)


@keywords.checked("kpatch.apply")
def apply(
    model: "keras.Layer",
    patch: PatchLike,
    /,
    *,
    donate: bool = True,
    undo: bool = True,
    expect: int | None = None,
    **bindings: Any,
) -> AppliedPatch:
    """Edits the weights of a model in place: all statements of the patch, or on any failure none.

    Args:
        model: a built Keras model or layer.
        patch: a text, a `Patch`, a path of a patch file, a `Diff`, or a list of these.
        donate: write into the variable's own memory where it alone holds it. With `False` each write makes a new
            array, so that another thread may go on reading the old one (on tensorflow the runtime sees to that by
            itself, for tensors that were read before).
        undo: keep the old values of the edited entries. With `False`, `undo()` is an error, and old values are kept
            only while a later statement can still fail on the values that it meets, and then until 4 MiB are written.
        expect: how many variables the patch must match; another number is an error, with nothing written.
        bindings: the values of the patch's `$names`: numbers, lists, arrays, tensors, Keras variables, and models,
            whose variables are reached by a path. Numbers, lists, and NumPy arrays of its default dtypes (float64,
            int64, bool) take the dtype of the tensor that they meet; others have their own.

    Returns:
        An `AppliedPatch`, with `.writes` and `.undo()`. As a context manager it undoes the edit on leaving.

    Raises:
        PatchError: every variable is bitwise as it was. If the backend fails after old values were dropped
            (`undo=False`), or while they are written back, the error lists what stays written, also as `written`.
            An interrupt (Ctrl-C) is raised as it is, with the same text and attribute if something stays written.
        UnsupportedError: inside a function that is being traced.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> applied = kpatch.apply(model, "dense_1.kernel[$row] = 0.5; **.bias = $b", row=0, b=[1, 2, 3], expect=2)
        >>> model.get_weights()[1].tolist()
        [1.0, 2.0, 3.0]
        >>> applied.undo()
    """
    backend = backends.current()
    backend.refuse_traces("kpatch.apply")
    return live.apply(check(model, *bound(patch, bindings), expect), backend, model, donate, undo)


@keywords.checked("kpatch.edit")
def edit(x: Any, patch: PatchLike, /, **bindings: Any) -> Any:
    """The pure form: a new tensor with the edits of the patch, `x` untouched.

    Works on concrete tensors, and inside `jax.jit`, `tf.function` and `torch.compile`, with gradients to the entries
    left alone and to the values. Compiled, values cannot be looked at, so a conversion that could lose must be
    written as `cast`. An index that is not certain to be in range is checked by the graph when it runs, if its backend
    can; in a graph of XLA an entry that does not exist changes nothing.

    Args:
        x: a tensor, a NumPy array, or what `keras.ops.convert_to_tensor` takes, of a known shape. A tensor and an
            array keep their dtype; on jax without `JAX_ENABLE_X64` a 64-bit array becomes one of 32 bits, if its
            numbers fit.
        patch: as for `apply`; every target is `_`.
        bindings: the values of the patch's `$names`, as for `apply`; they may be traced as well.

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
    from keras import KerasTensor, ops

    if in_dynamo():
        from kpatch.compiled import dynamo

        if not isinstance(patch, str):
            patch, bindings = bound(patch, bindings)
        return dynamo.edit(x, patch if isinstance(patch, str) else patch.source or str(patch), bindings)
    patch, bindings = bound(patch, bindings)
    if isinstance(x, KerasTensor):
        raise UnsupportedError("a symbolic tensor is edited by a layer: kpatch.layers.ScatterLayer(patch)(x)")
    x = _as_tensor(x)
    value = tensor(x)
    if any(length is None for length in x.shape):
        raise UnsupportedError(f"kpatch.edit needs a known shape. Received: x.shape={tuple(x.shape)}")
    implied = "_", value.shape, value.dtype
    traced = is_traced(x)
    if bindings:
        given = Bindings(bindings)
        traced = traced or given.traced
        planned = _made(patch, TensorNames(Place(*implied), given), traced)
    else:
        planned = _edit_plan(patch, implied, traced)
    store = execute.Pure(x, planned.names)
    execute.run(planned, store, traced=traced)
    return ops.copy(x) if store.tensor is x else store.tensor


def check(model, patch, bindings, expect=None):
    """What runs a patch on a model; without bindings kept while neither names nor variables of the model change."""
    from kpatch.resolve import index

    names = index(model)
    if bindings:
        checked = _made(patch, ModelNames(names, Bindings(bindings)))
    else:
        cache = vars(names).setdefault("plans", {})  # they go with the index that they were made from
        checked = cache.get(patch)
        if checked is None:
            checked = _made(patch, ModelNames(names, Bindings({})))
            if len(cache) >= CACHED_PLANS:
                cache.pop(next(iter(cache)))
            cache[patch] = checked
    if expect is not None:
        check_expected(checked, expect)
    return checked


def _made(patch, names, traced=False):
    implied = names.implied.unknown() if isinstance(names, TensorNames) else None
    checked = planner.make(patch, names, implied, traced)
    names.bindings.check_used()
    return checked


def check_expected(checked, expect):
    """Raises a `ResolutionError` if the patch writes to another number of variables."""
    places = list({id(step.place): step.place for step in checked.edits}.values())
    if len(places) != expect:
        shown = [repr(place) for place in places[:MAX_LISTED]]
        more = [f"and {len(places) - MAX_LISTED} more"] * (len(places) > MAX_LISTED)
        raise ResolutionError(
            f"the patch matches {len(places)} variable{'s' * (len(places) != 1)}, not {expect}", notes=[*shown, *more]
        )


def _as_tensor(x):
    import keras

    if isinstance(x, np.ndarray | np.generic):
        return from_numpy(x)
    if isinstance(x, keras.Variable):
        return of_variable(x)
    if keras.ops.is_tensor(x) and backends.current().arrays_are_tensors:
        return x
    try:
        return keras.ops.convert_to_tensor(x)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PatchError(f"kpatch.edit takes a tensor; Received: {reprlib.repr(x)} (of type {type(x)})") from error


@lru_cache(maxsize=256)
def _edit_plan(patch, implied, traced):
    return _made(patch, TensorNames(Place(*implied), Bindings({})), traced)
