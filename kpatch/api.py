"""The public functions: `plan`, `apply` and `edit`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from kpatch import backends
from kpatch.errors import PatchError
from kpatch.names import keywords
from kpatch.names.patches import PatchLike, bound, together
from kpatch.run import agreeing, checking, live, pure, repeated
from kpatch.run.plan import Plan
from kpatch.run.resetting import optimizers_for
from kpatch.run.undo import AppliedPatch

if TYPE_CHECKING:
    import keras

One = Union["keras.Layer", "keras.Variable"]
Editable = One | Sequence[One] | Mapping[str, One]


@keywords.checked("kpatch.plan")
def plan(
    model: "Editable",
    patch: PatchLike,
    /,
    *,
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    **named: Any,
) -> Plan:
    """What a patch would do to a model: a dry run, checked in full, with nothing written.

    A patch of one model may also edit activations, as for `intervene`. Of these the plan tells what the graph of the
    model knows; the rest is known when the model is called.

    Args:
        model: a built Keras model or layer, a variable, or a list or dict of these, as for `apply`.
        patch: a text, a `Patch`, a path of a patch file, a `Diff`, or a list of these.
        expect: how many variables the patch must match, in all models together; another number is an error.
        bindings: the values of the patch's `$names`, as for `apply`.
        **named: the same as keywords, `row=0`.

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
        >>> kpatch.plan(model, "dense_1.output[:, 1] = 0").rows[0].shape
        (None, 3)
    """
    import keras

    from kpatch.inside import planning

    backends.current().refuse_traces("kpatch.plan")
    given = bound(patch, bindings, named)
    if isinstance(model, keras.Layer) and planning.may_edit_activations(given[0]):
        return planning.plan(model, *given, expect)
    return repeated.plan(model, *given, expect)


@keywords.checked("kpatch.apply")
def apply(
    model: "Editable",
    patch: PatchLike,
    /,
    *,
    donate: bool = True,
    undo: bool = True,
    slots: "str | keras.optimizers.Optimizer" = "keep",
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    **named: Any,
) -> AppliedPatch:
    """Edits the weights of a model in place: all statements of the patch, or on any failure none.

    If it takes over a second, a progress bar is shown on a terminal or in a notebook, and nowhere else. With the
    environment variable `KPATCH_PROGRESS=off` there is none.

    Args:
        model: a built Keras model or layer; or a `keras.Variable`, which the patch calls `_`; or several of them, in
            one edit: of a list each is edited by the whole patch, and of a dict the names begin with its keys (the key
            of a variable is its whole name). A variable that several models of a list share is written once by each
            statement.
        patch: a text, a `Patch`, a path of a patch file, a `Diff`, or a list of these.
        donate: write into the variable's own memory where it alone holds it. With `False` each write makes a new
            array, so that another thread may go on reading the old one (on tensorflow the runtime sees to that by
            itself, for tensors that were read before).
        undo: keep the old values of the edited entries. With `False`, `undo()` is an error, and old values are kept
            only while a later statement can still fail on the values that it meets, and then until 4 MiB are written; a
            number that is written under a mask counts as the whole variable.
        slots: what becomes of the optimizer's variables for the entries written (momentum, variance). `"keep"`, or
            `"reset"` to what they start from; a moving average then starts from the new value. The optimizer is that
            of the compiled model; in a loop of your own, hand it in, `slots=optimizer`. Undone with the edit.
        expect: how many variables the patch must match, in all models together; another number is an error, with
            nothing written.
        bindings: the values of the patch's `$names`, `{name: value}`: numbers, lists, arrays, tensors, Keras
            variables, and models, whose variables are reached by a path. Numbers, lists, and NumPy arrays of its
            default dtypes (float64, int64, bool) take the dtype of the tensor that they meet; others have their own.
        **named: the same as keywords, `row=0`; a name that is an option here, as `undo`, is bound by `bindings` alone.

    Returns:
        An `AppliedPatch`, with `.writes` and `.undo()`. As a context manager it undoes the edit on leaving. The paths
        of its writes begin with the position in the list, `[0].dense_1.bias`, or the key of the dict.

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
        >>> other = keras.models.clone_model(model)
        >>> applied = kpatch.apply({"a": model, "b": other}, "a.dense_1.bias = b.dense_1.bias + 1")
        >>> applied = kpatch.apply([model, other], "dense_1.bias[0] = 7")
        >>> [write.path for write in applied.writes], model.get_weights()[1].tolist()
        (['[0].dense_1.bias', '[1].dense_1.bias'], [7.0, 1.0, 1.0])
        >>> applied = kpatch.apply(model.layers[0].bias, "_ *= 2")
        >>> model.get_weights()[1].tolist()
        [14.0, 2.0, 2.0]
    """
    backends.current().refuse_traces("kpatch.apply")
    try:
        checked = checking.check_all(model, *bound(patch, bindings, named), expect)
        optimizers = () if slots == "keep" else optimizers_for(slots, checked.names.models)
    except PatchError:
        agreeing.refuse(model)
        raise
    run = live.apply_with_bar if checked.lasts else live.apply
    return run(checked, donate, undo, optimizers)


@keywords.checked("kpatch.edit", in_graph=True)
def edit(x: Any, patch: PatchLike, /, *, bindings: Mapping[str, Any] | None = None, **named: Any) -> Any:
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
        **named: the same as keywords, `row=0`.

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
    if backends.current().in_dynamo():
        from kpatch.inside import dynamo

        given = together(bindings, named)
        if not isinstance(patch, str):
            patch, given = bound(patch, given)
        return dynamo.edit(x, patch if isinstance(patch, str) else patch.source or str(patch), given)
    return pure.edit(x, *bound(patch, bindings, named))
