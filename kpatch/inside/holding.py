"""`hold`: entries of a model keep their values through training."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kpatch import backends
from kpatch.errors import UndoError, UnsupportedError
from kpatch.names import keywords
from kpatch.names.meanings import Place
from kpatch.names.patches import PatchLike, bound
from kpatch.names.weights import weight_of
from kpatch.run import checking, live
from kpatch.run.forgetting import forget_compiled, models_with
from kpatch.run.resetting import SlotStep
from kpatch.run.undo import AppliedPatch
from kpatch.values.tensors import mask_of, to_numpy

if TYPE_CHECKING:
    import keras
    from typing_extensions import Self


@keywords.checked("kpatch.hold")
def hold(
    model: "keras.Layer",
    patch: PatchLike,
    /,
    *,
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    **named: Any,
) -> "Hold":
    """Applies a patch, and has the entries that it names keep their values while the model trains, bit by bit.

    With every optimizer, weight decay, momentum, clipping and moving averages. `_[mask] = _` holds what is there. The
    values are held by constraints: in layers that have one for the variable (`kernel_constraint`) they are saved with
    the model, and hold on after loading, once `kpatch.constraints` is imported. Training steps are compiled anew, of
    every model that the layers are part of; also while `fit` runs. Several holds of one variable are released in any
    order.

    Args:
        model: a built Keras model or layer.
        patch: as for `kpatch.apply`.
        expect: how many variables the patch must match; another number is an error.
        bindings: the values of the patch's `$names`, as for `apply`.
        **named: the same as keywords, `row=0`.

    Returns:
        A `Hold`; its `release()` ends it, and so does the end of a `with` block.

    Raises:
        PatchError: the patch fails, or names a variable that no optimizer trains; nothing is changed then.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> held = kpatch.hold(model, "dense_1.kernel[0] = 1.0")
        >>> held
        <Hold of 3 entries of dense_1.kernel>
        >>> held.release()
    """
    backends.current().refuse_traces("kpatch.hold")
    checked = checking.check(model, *bound(patch, bindings, named), expect)
    for step in checked.edits:
        weight = step.place.weight
        if weight is not None and weight.moves:
            message = f"'{step.place.path}' cannot be held: {weight.moves}"
            raise UnsupportedError(message).locate(step.statements[0].target.span, checked.patch.source)
        if not step.place.variable.trainable:
            message = f"'{step.place.path}' is not trained, so there is nothing to hold it against"
            raise UnsupportedError(message).locate(step.statements[0].target.span, checked.patch.source)
    applied = live.apply(checked)
    try:
        return Hold(model, written(applied))
    except BaseException:
        applied._withdraw()
        raise


class Hold:
    """Entries that are held. `release()` lets them train again."""

    def __init__(self, model: "keras.Layer", masks: list[tuple[Place, np.ndarray]]) -> None:
        self._model = model
        self._places = [place for place, _ in masks]
        self._layers = [place.entry.owner.item for place in self._places]
        self._links = []  # (what has the constraint, under which name, the constraint)
        self._told = ", ".join(f"{mask.sum()} entries of {place.path}" for place, mask in masks)
        try:
            for place, mask in masks:
                self._constrain(place, mask)
        except BaseException:
            self.release()
            raise
        self._forget()

    def _constrain(self, place: Place, mask: np.ndarray) -> None:
        from kpatch.constraints import HELD, PatchConstraint

        values = np.where(mask, to_numpy(place.variable.value), np.zeros((), mask.dtype).astype(place.dtype))
        held = values[mask]
        bits = held.view("uint8").reshape(held.size, -1)  # 0.0 is not -0.0
        bindings = {"mask": mask, "held": held[0] if (bits == bits[0]).all() else values}
        constraint = PatchConstraint(HELD, bindings)
        for owner, name in self._homes(place):
            link = constraint.on(getattr(owner, name))
            setattr(owner, name, link)
            self._links.append((owner, name, link))

    def _homes(self, place: Place) -> Iterator[tuple[Any, str]]:
        """Where a constraint is looked for: in the variable, and for the configuration in its layer."""
        yield place.variable, "constraint"
        layer, name = place.entry.owner.item, f"{place.variable.name}_constraint"
        if hasattr(layer, name):
            yield layer, name

    def release(self) -> None:
        """Ends it: what was held trains again. Other holds go on, and other constraints are as they were.

        Raises:
            UndoError: it is ended, and did not hold all the time, as LoRA was enabled or float8 chosen meanwhile.
        """
        while self._links:
            owner, name, link = self._links.pop()
            setattr(owner, name, link.taken_from(getattr(owner, name)))
        self._forget()
        places, self._places = self._places, []
        for place in places:
            if reason := _moves_now(place):
                layer = place.entry.owner.item
                message = f"'{place.path}' was not held to the end: since '{layer.name}' was changed, {reason}"
                raise UndoError(message)

    def _forget(self) -> None:
        """Drops the training steps of all models that the layers are part of."""
        forget_compiled([self._model, *models_with(self._layers)])

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Hold of {self._told or 'nothing'}>"


def _moves_now(place: Place) -> str | None:
    """What changes a weight by now while its layer trains, though its variable is held; or `None`."""
    layer = place.entry.owner.item
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        if variable.name == place.variable.name and (weight := weight_of(layer, variable)) is not None:
            return weight.moves
    return None


def written(applied: AppliedPatch) -> list[tuple[Place, np.ndarray]]:
    """Each place with the mask of the entries written."""
    masks = {}
    for record in applied._records:
        if isinstance(record.step, SlotStep):
            continue
        place = record.step.place
        _, mask = masks.setdefault(id(place.variable), (place, np.zeros(place.shape, bool)))
        mask |= mask_of(record.selection, place.shape)
    return [pair for pair in masks.values() if pair[1].any()]
