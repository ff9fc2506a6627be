"""`record`: the activations of the calls of a model's layers, while a `with` block lasts."""

import contextlib
import functools
import itertools
import reprlib
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from kpatch import backends
from kpatch.errors import BindingError, LimitError, PatchError, ResolutionError, UnsupportedError, boundary
from kpatch.inside import attention
from kpatch.inside.activations import loop_around, why_not_called
from kpatch.inside.calls import INPUTS, OUTPUTS, end, is_rehearsed, patch_call
from kpatch.inside.outlets import Line, Outlet, line_of
from kpatch.inside.outputs import Inputs, Keys, Outputs, first_alone, tensors
from kpatch.inside.recorded import Recorded, Spot, Tape, selector_of
from kpatch.names.tree import LayerNode, distinct, spelled
from kpatch.run.forgetting import forget_compiled, layers_of, models_with
from kpatch.values.numerics import is_traced
from kpatch.values.tensors import to_numpy

MAX_RECORDED = 2**31  # bytes that a recording holds, if it is not told another limit

Targets = list[tuple[LayerNode, str, Keys]]  # layers, "input" or "output", and the keys of tensors in it

if TYPE_CHECKING:
    import keras
    from typing_extensions import Self


@boundary
def record(
    model: "keras.Layer",
    what: str | Sequence[str],
    /,
    *,
    stack: bool = False,
    host: bool = False,
    limit: int = MAX_RECORDED,
) -> "Recording":
    """Records activations of the calls that are made while a `with` block lasts: eager, predicted, generated.

    A recording is a mapping from names to tensors, `clean["dense_1.output"]`, and a value for a `$name`:
    `$clean.dense_1.output` is an activation of it, `$clean._` the one at the place of the target. What is recorded is
    what flows on: patched, if `intervene` patches it.

    A block holds however the model is run, as one of `kpatch.intervene`: also by functions that you compile.

    Args:
        model: a Keras model or layer.
        what: the activations, by a selector or several: `"dense_1.output"`; of a glob those that are called.
        stack: the calls of a layer are one tensor, stacked on a new first axis; they must have one shape. Else one
            call gives a tensor, and several give a list of them.
        host: NumPy arrays on the host, not tensors on the device.
        limit: how many bytes are held; with more, all are dropped, and there is an error.

    Returns:
        A `Recording`, for one `with` block.

    Raises:
        PatchError: a selector means no activation. When the block is left: a `ResolutionError` for a selector none of
            whose layers was called, and a `LimitError` if the limit was reached.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> with kpatch.record(model, "dense_1.output") as clean:
        ...     outputs = model.predict(keras.ops.ones((1, 4)), verbose=0)
        >>> clean
        <Recording of 1 call: dense_1.output (1, 3) float32>
        >>> with kpatch.intervene(model, "dense_1.output[:, 0] = $clean._[:, 0]", clean=clean):
        ...     patched = model.predict(keras.ops.zeros((1, 4)), verbose=0)
        >>> bool(patched[0, 0] == outputs[0, 0])
        True
    """
    backends.current().refuse_in_dynamo("kpatch.record")
    given: Any = limit
    if not isinstance(given, Integral) or given < 0:
        raise BindingError(f"limit is a number of bytes. Received: limit={limit!r}")
    return Recording(model, what, stack, host, limit)


class Recording(Recorded):
    """Activations by name, recorded while a `with` block lasts. `kpatch.record` makes it.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> with kpatch.record(model, "*.output") as steps:
        ...     for length in (1, 2):
        ...         _ = model(keras.ops.ones((length, 4)))
        >>> list(steps), [x.shape[0] for x in steps["dense_1.output"]]
        (['dense_1.output'], [1, 2])
        >>> steps.call(1)
        <Recorded of 1 call: dense_1.output (2, 3) float32>
    """

    def __init__(self, model: Any, what: str | Sequence[str], stack: bool, host: bool, limit: int) -> None:
        from kpatch.names.index import index

        self._recorder = _Recorder(stack, host, limit)
        super().__init__(index(model), self._recorder)
        texts: Any = [what] if isinstance(what, str) else what
        if not texts or not isinstance(texts, Sequence) or isinstance(texts, bytes):
            raise BindingError(f"kpatch.record takes one activation or several, 'dense_1.output'. Received: {what!r}")
        self._targets = {text: self._activations(text) for text in texts}
        self._told = f"kpatch.record(model, {reprlib.repr(what)})"
        self._block: contextlib.ExitStack | None = None
        self._dropped: Any = None

    def _activations(self, text: str) -> Targets:
        from keras.layers import InputLayer

        selector = selector_of(text)
        try:
            nodes, kind, inner = self._index.activations(selector)
            if not nodes:
                self._index.find_all(selector)
                raise UnsupportedError(f"'{selector}' is a weight; kpatch.record records activations")
        except PatchError as error:
            raise error.locate(selector.span, text) from None
        reasons = {}
        for node in nodes:
            if isinstance(node.item, InputLayer):
                reasons[node] = f"'{selector}' is an input of the model, which no layer computes"
            elif loop := loop_around(node, "RNN"):
                reasons[node] = f"'{node.item.name}.{kind}' is computed in the steps of '{loop.name}', once for each"
        if len(reasons) == len(nodes):
            raise UnsupportedError(next(iter(reasons.values())), span=selector.span, source=text)
        return [(node, kind, inner) for node in nodes if node not in reasons]

    def call(self, number: int) -> Recorded:
        """What one call of each layer gave: the first has the number 0, the latest -1.

        Raises:
            ResolutionError: no layer was called so often.
        """
        self._tape.finish()
        one = self._tape.call(number)
        if not one.names:
            raise ResolutionError(f"there is no call {number}: the recording has {self._tape.calls()}")
        return Recorded(self._index, one)

    def __enter__(self) -> "Self":
        backends.current().refuse_traces("kpatch.record")
        if self._block is not None:
            raise UnsupportedError("a recording has one block; kpatch.record makes another one")
        stack = self._block = contextlib.ExitStack()
        self._dropped = weakref.finalize(self, end, stack, f"{self._told} was not left by its block; it ends now")
        self._dropped.atexit = False
        try:
            self._recorder.begin(self._index, self._targets.values(), stack)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        if self._dropped is None or not self._dropped.detach() or self._block is None:
            return
        with self._block:
            self._tape.finish()
        if error is None:
            self._recorder.check_limit()
            self._check_called()

    def _check_called(self) -> None:
        for text, found in self._targets.items():
            if not any(self._tape.of_layer(node.item, kind, inner) for node, kind, inner in found):
                self._recorder.spoil()
                message = f"nothing was recorded of '{text}': it was not computed in the block"
                raise ResolutionError(message, notes=[why_not_called(*found[0][:2])])


class _Recorder(Tape):
    """Takes what layers are given and give, while a stack is open."""

    def __init__(self, stack: bool, host: bool, limit: int) -> None:
        super().__init__(stack)
        self._host = host
        self._limit = limit
        self._bytes = 0
        self._line: Line | None = None
        self._thread = 0

    def begin(self, index: Any, targets: Iterable[Targets], stack: contextlib.ExitStack) -> None:
        backend = backends.current()
        places: dict[tuple[LayerNode, str], set[Keys]] = {}
        for node, kind, inner in itertools.chain(*targets):
            places.setdefault((node, kind), set()).add(inner)
        held = list({id(node): node.item for node, _ in places}.values())
        form = tuple((*place, frozenset(wanted)) for place, wanted in places.items())
        line = self._line = line_of(index, form, held, stack)
        self._thread = threading.get_ident()
        if not backend.xla_hands_out:
            _compile_without_xla(distinct([*layers_of(index), *models_with(held)]), stack)
        see = backend.outside_graphs(self._see)
        for (node, kind), wanted in places.items():
            host, side = attention.source(node.item, kind)
            around, rank = (self._around_input, INPUTS) if side == "input" else (self._around_output, OUTPUTS)
            seen = functools.partial(see, line.outlet, node, kind, wanted)
            patch_call(host, functools.partial(around, seen), stack, rank)
            if kind == "scores":
                attention.unfuse(node.item, stack)
        backend.finish()  # what ran before the block has handed out its activations
        stack.callback(setattr, line.outlet, "recorder", None)
        line.outlet.recorder = self
        line.traces.seen = True
        line.traces.begin(stack)  # last, and so it ends first: other threads find no trace of it without the calls
        line.traces.patched()

    def spoil(self) -> None:
        """What was compiled in the block serves no later one."""
        if self._line is not None:
            self._line.spoiled = True

    @staticmethod
    def _around_input(see: Callable, call: Callable, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = see((args, kwargs)) or (args, kwargs)
        return call(*args, **kwargs)

    @staticmethod
    def _around_output(see: Callable, call: Callable, *args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        seen = see(outputs)
        return outputs if seen is None else seen

    def _see(self, outlet: Outlet, node: LayerNode, kind: str, wanted: set[Keys], x: Any) -> Any:
        """Takes what a layer is given or gives; in a graph, has the graph hand it out.

        Returns:
            What the call goes on with, if that is something else.
        """
        from keras.src.backend.common.stateless_scope import in_stateless_scope

        from kpatch.backends.exporting import is_exporting

        layer = node.item
        first = kind == "output" and first_alone(layer, x)
        passed = _Passed(layer, kind, x)
        for keys, each in _tensors(layer, kind, wanted, x, passed.seen).items():
            if is_rehearsed(each) or not any(keys[: len(inner)] == inner for inner in wanted):
                continue
            if is_traced(each) and is_exporting():
                hint = "export it before the block, or after it"
                raise UnsupportedError("a model is not exported in a block of kpatch.record", notes=[hint])
            name = spelled([*node.keys(), kind, *keys])
            place = Spot(id(layer), kind, keys)
            take = functools.partial(outlet.take, name, place, first and keys == ("0",))
            if threading.get_ident() != self._thread and is_traced(each):
                self.spoil()  # the other thread may go on after the block, where no layer is recorded
            passed.put(keys, each, backends.current().hand_out(take, each))
        if not in_stateless_scope():  # where Keras would lose the values of weights by an error
            self.check_limit()
        return passed.x

    def take(self, name: str, place: Spot, first: bool, x: Any) -> None:
        """Keeps a tensor, under its name, and under that of the layer's output if it is the `first` of several."""
        if self._bytes > self._limit:
            return
        self._bytes += backends.current().nbytes(x)
        if self._bytes > self._limit:
            self.names.clear()
            self.taken.clear()
            return
        self.names.setdefault(name, place)
        self.first |= {place} if first else set()
        self.taken.setdefault(place, []).append(to_numpy(x) if self._host else backends.current().snapshot(x))

    def finish(self) -> None:
        """Waits for graphs, and puts on the device what they handed out on the host."""
        import keras

        backend = backends.current()
        backend.finish()
        if self._host or backend.arrays_are_tensors:
            return
        for taken in self.taken.values():
            for number, x in enumerate(taken):
                if isinstance(x, np.ndarray):
                    with backend.untraced():
                        taken[number] = keras.ops.convert_to_tensor(x)

    def check_limit(self) -> None:
        if self._bytes > self._limit:
            hints = ["record fewer activations or calls, or allow more by limit=..."]
            raise LimitError(f"the recording needs more than {self._limit:,} bytes", notes=hints)


class _Passed:
    """What a layer is given or gives, once tensors in it are others.

    Attributes:
        seen: the activation, of which tensors are replaced.
        x: what the call goes on with; `None` if no tensor is another.
    """

    def __init__(self, layer: Any, kind: str, x: Any) -> None:
        self.x: Any = None
        host, side = attention.source(layer, kind)
        self._held = Inputs(host, *x) if side == "input" else Outputs(host, x)
        self.seen = attention.seen(layer, kind, self._held)

    def put(self, keys: Keys, before: Any, after: Any) -> None:
        if after is not before:
            self.seen.replace(keys, after)
            held = self._held
            self.x = (held.args, held.kwargs) if isinstance(held, Inputs) else held.value


def _tensors(layer: Any, kind: str, wanted: set[Keys], x: Any, seen: Any) -> dict[Keys, Any]:
    """The tensors of an activation, by their keys, in what the call of its `attention.source` is given or gives."""
    if kind == "output":
        return dict(tensors(x))
    if kind == "input":
        return dict(itertools.chain(*(Inputs(layer, *x).tensors(keys) for keys in wanted)))
    return {(): seen.tensor(())}


def _compile_without_xla(models: list[Any], stack: contextlib.ExitStack) -> None:
    """Until the stack closes, models compile their functions without XLA, whose graphs give nothing out."""
    import keras

    compiled = [model for model in models if isinstance(model, keras.Model) and model.jit_compile]
    stack.callback(forget_compiled, compiled)
    for model in compiled:
        stack.callback(setattr, model, "jit_compile", model.jit_compile)
        model.jit_compile = False
    forget_compiled(compiled)
