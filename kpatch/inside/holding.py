"""`hold`: entries of a model keep their values through training."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kpatch import backends
from kpatch.errors import UndoError, UnsupportedError, boundary
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

    With every optimizer of Keras and of `torch.optim`; with weight decay, momentum, clipping and moving averages.
    `_[mask] = _` holds what is there. The values are held by constraints: in layers that have one for the variable
    (`kernel_constraint`) they are saved with the model, and hold on after loading, once `kpatch.constraints` is
    imported. What a layer updates when it is called, such as moving statistics, is held against that. The hold of a
    frozen variable waits until the variable is trained. Training steps are compiled anew, of every model that the
    layers are part of; also while `fit` runs. Several holds of one variable are released in any order.

    Args:
        model: a built Keras model or layer.
        patch: as for `kpatch.apply`.
        expect: how many variables the patch must match; another number is an error.
        bindings: the values of the patch's `$names`, as for `apply`.
        **named: the same as keywords, `row=0`.

    Returns:
        A `Hold`; its `release()` ends it, and so does the end of a `with` block.

    Raises:
        PatchError: the patch fails, or names a variable that is no layer's own; nothing is changed then.

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
        if weight is not None or not _is_of_layer(step.place):  # codes
            message = f"'{step.place.path}' is not trained, so there is nothing to hold it against"
            raise UnsupportedError(message).locate(step.statements[0].target.span, checked.patch.source)
    applied = live.apply(checked)
    try:
        held = Hold(model, written(applied))
    except BaseException:
        applied._withdraw()
        raise
    held._keeps(applied)
    return held


class Hold:
    """Entries that are held. `release()` lets them train again."""

    def __init__(self, model: "keras.Layer", masks: list[tuple[Place, np.ndarray]]) -> None:
        self._model = model
        self._places = [place for place, _ in masks]
        self._layers = [place.entry.owner.item for place in self._places]
        self._links: list[tuple[Any, str, Any]] = []  # (what has the constraint, under which name, the constraint)
        self._stack = contextlib.ExitStack()  # what else ends with it
        self._held = {id(place.variable): int(mask.sum()) for place, mask in masks}  # how many entries of each
        try:
            for place, mask in masks:
                self._hold(place, mask)
        except BaseException:
            self.release()
            raise
        self._forget()

    def _hold(self, place: Place, mask: np.ndarray) -> None:
        constraint = self._constraint(place, mask)
        if not _is_trained(place):
            HeldAssign.of(place.variable).add(constraint, self._stack)
            return
        for owner, name in self._homes(place):
            link = constraint.on(getattr(owner, name))
            setattr(owner, name, link)
            self._links.append((owner, name, link))
        restore = functools.partial(_restore, place.variable, constraint)
        if end := backends.current().after_own_steps(place.variable, restore):
            self._stack.callback(end)

    def _keeps(self, applied: AppliedPatch) -> None:
        """Until it is released, no edit before this one is undone, whose entries are held."""
        self._stack.callback(applied._of_hold())

    def _constraint(self, place: Place, mask: np.ndarray) -> Any:
        from kpatch.constraints import HELD, PatchConstraint

        values = held_values(place, mask)
        held = values[mask]
        bits = held.view("uint8").reshape(held.size, -1)  # 0.0 is not -0.0
        return PatchConstraint(HELD, {"mask": mask, "held": held[0] if (bits == bits[0]).all() else values})

    def _homes(self, place: Place) -> Iterator[tuple[Any, str]]:
        """Where a constraint is looked for: in the variable, and for the configuration in its layer."""
        yield place.variable, "constraint"
        layer, name = place.entry.owner.item, f"{place.variable.name}_constraint"
        if hasattr(layer, name):
            yield layer, name

    @boundary
    def release(self) -> None:
        """Ends it: what was held trains again. Other holds go on, and other constraints are as they were.

        The values stay. What was edited before can be undone now.

        Raises:
            UndoError: it is ended, and did not hold all the time, as LoRA was enabled or float8 chosen meanwhile.
        """
        self._stack.close()
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
        if self._held and not self._places:
            return "<Hold, released>"
        counts = [(place, self._held[id(place.variable)]) for place in self._places]
        told = [f"{n} entr{'y' if n == 1 else 'ies'} of {place.path}{_waits(place)}" for place, n in counts]
        return f"<Hold of {', '.join(told) or 'nothing'}>"


class GrowingHold(Hold):
    """Entries that are held, and to which others can be added, with nothing compiled anew.

    Args:
        model: the model.
        places: the variables.
    """

    def __init__(self, model: "keras.Layer", places: list[Place]) -> None:
        self._constraints: dict[int, Any] = {}  # of each variable, by its id
        super().__init__(model, [(place, np.zeros(place.shape, bool)) for place in places])

    def _constraint(self, place: Place, mask: np.ndarray) -> Any:
        from kpatch.constraints import PatchConstraint

        made = self._constraints[id(place.variable)] = PatchConstraint.growing(mask, held_values(place, mask))
        return made

    def add(self, masks: list[tuple[Place, np.ndarray]], applied: AppliedPatch) -> None:
        """Holds the present values of more entries, which an edit has written."""
        self._keeps(applied)
        for place, mask in masks:
            held = self._constraints[id(place.variable)]
            every = held.patch.bindings["mask"] | mask
            held.put(every, held_values(place, every))
            self._held[id(place.variable)] = int(every.sum())


def held_values(place: Place, mask: np.ndarray) -> np.ndarray:
    """The present values of the entries under a mask, and zeros."""
    return np.where(mask, to_numpy(place.variable.value), np.zeros((), mask.dtype).astype(place.dtype))


class HeldAssign:
    """Stands in for `assign` of a variable that its layer updates, such as moving statistics, while holds last."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self._held: tuple[Any, ...] = ()

    @classmethod
    def of(cls, variable: Any) -> "HeldAssign":
        held = vars(variable).get("assign")
        if not isinstance(held, cls):
            held = variable.assign = cls(variable)
        return held

    def __call__(self, value: Any) -> Any:
        variable = self._variable
        value = variable._convert_to_tensor(value, dtype=variable.dtype)
        if tuple(value.shape) == tuple(variable.shape):  # else Keras's error comes
            for constraint in self._held:
                value = constraint(value)
        return type(variable).assign(variable, value)

    def add(self, constraint: Any, stack: contextlib.ExitStack) -> None:
        self._held = (*self._held, constraint)
        stack.callback(self._remove, constraint)

    def _remove(self, constraint: Any) -> None:
        self._held = tuple(each for each in self._held if each is not constraint)
        if not self._held and vars(self._variable).get("assign") is self:
            del self._variable.assign


def _restore(variable: Any, constraint: Any) -> None:
    """Writes back what is held of a variable."""
    variable.assign(constraint._stepped(variable))


def _is_of_layer(place: Place) -> bool:
    """Whether a variable is a layer's own: of those that are trained if nothing is frozen, or updated in its calls."""
    owner = place.entry.owner.item
    own = (*getattr(owner, "_trainable_variables", ()), *getattr(owner, "_non_trainable_variables", ()))
    return any(variable is place.variable for variable in own)


def _is_trained(place: Place) -> bool:
    """Whether an optimizer trains the variable if nothing is frozen."""
    return any(variable is place.variable for variable in place.entry.owner.item._trainable_variables)


def _waits(place: Place) -> str:
    return " (frozen now)" if _is_trained(place) and not place.variable.trainable else ""


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
