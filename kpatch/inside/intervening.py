"""`intervene`: the calls of a model's layers, and its weights, are patched while a `with` block lasts."""

import contextlib
import functools
import itertools
import reprlib
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kpatch import backends
from kpatch.backends.base import Cell
from kpatch.errors import PatchError, ResolutionError, UnsupportedError, left_alone
from kpatch.inside import attention, shapes
from kpatch.inside.activations import Activations, loop_around, tensor_in, why_not_called
from kpatch.inside.calls import end, is_rehearsed, patch_call
from kpatch.inside.forms import Specs, form_of
from kpatch.inside.outputs import Inputs, Outputs
from kpatch.inside.splitting import Part, Split
from kpatch.inside.tensor_patch import TensorPatch, in_dynamo
from kpatch.inside.traces import Traces
from kpatch.names import keywords
from kpatch.names.patches import PatchLike, bound
from kpatch.names.tree import LAYER, LayerNode
from kpatch.run import checking, live
from kpatch.syntax import Patch
from kpatch.values.dtypes import FLOATS, dtype_name
from kpatch.values.numerics import is_traced
from kpatch.values.symbols import lengths

Seen = list[tuple[Any, str, str]]  # layers, an activation of each, and whether it is the "input" or "output" of a call
SHOWN = 8  # of the activations and weights that an intervention edits
NO_CALL = (
    "edited no activation: none of its layers was called in the block. If the model ran, it was by a program that "
    "calls no layer (compiled ahead of time, exported, traced by torch.jit): call the model itself, or make the "
    "program in the block"
)

if TYPE_CHECKING:
    import keras
    from typing_extensions import Self


@keywords.checked("kpatch.intervene")
def intervene(
    model: "keras.Layer",
    patch: PatchLike,
    /,
    *,
    expect: int | None = None,
    bindings: Mapping[str, Any] | None = None,
    **named: Any,
) -> "Intervention":
    """Patches what layers are given and give, and weights, while a `with` block lasts: for models of any kind.

    The patch is checked by this call, and takes effect in the block. Blocks may end in any order: each ends its own
    edits, and no others. A block holds however the model is run: called, by `predict`, `fit` or `generate`, by
    functions that you compile, by other models that share the layers; not by programs compiled ahead of time.

    Args:
        model: a built Keras model or layer.
        patch: as for `kpatch.apply`: weights (edited first, and restored), and activations, each of one tensor. An
            expression reads the activations of layers that were called before, in the same call of the model.
        expect: how many variables and activations the patch must match; another number is an error.
        bindings: the values of the patch's `$names`. For activations a tensor keeps its gradient, a `keras.Variable`
            is read when the layer runs, and `kpatch.record` gives activations.
        **named: the same as keywords, `row=0`.

    Returns:
        An `Intervention`, for one `with` block after another.

    Raises:
        PatchError: for anything wrong with the patch, or with its fit to the model. What depends on the values of
            weights, assertions among it, is checked when a block begins; what depends on the shapes of activations,
            or on their order, when the model is called. When a block ends, a `ResolutionError` for a statement none
            of whose activations was computed, though the model ran; if no layer was called at all, a `RuntimeWarning`.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> with kpatch.intervene(model, "dense_1.output[..., 0] = 7"):
        ...     model.predict(keras.ops.ones((1, 4)), verbose=0)[0, 0].item()
        7.0
    """
    backends.current().refuse_in_dynamo("kpatch.intervene")
    return Intervention(model, *bound(patch, bindings, named), expect)


class Intervention:
    """A patch that takes effect in a `with` block. `kpatch.intervene` makes it.

    If it is dropped and there was no block, a `RuntimeWarning` says so.

    Example:
        >>> import keras, kpatch
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense_1")])
        >>> seven = kpatch.intervene(model, "dense_1.output[..., 0] = 7; dense_1.bias = 1")
        >>> seven
        <Intervention in dense_1.output, dense_1.bias: begins with a 'with' block>
        >>> with seven:
        ...     _ = model(keras.ops.ones((1, 4)))
        ...     seven
        <Intervention in dense_1.output, dense_1.bias: under way>
    """

    def __init__(self, model: "keras.Layer", patch: Patch, bindings: dict[str, Any], expect: int | None = None) -> None:
        self._given = model, patch, bindings, expect
        self._stack: contextlib.ExitStack | None = None  # what ends the block
        self._spend: Any = None
        self._prepare()
        self._told = f"kpatch.intervene(model, {reprlib.repr(self._split.patch.source)})"
        message = f"{self._told} had no 'with' block, so it had no effect"
        self._dropped: Any = weakref.finalize(self, warnings.warn, message, RuntimeWarning, 2)

    def _prepare(self) -> None:
        self._split = Split(*self._given)
        self._calls = self._own = Calls(self._split)
        self._form = form_of(self._split)
        if self._spend is not None:
            self._spend()
        self._spend = weakref.finalize(self, self._calls.traces.spend)
        self._spend.atexit = False
        self._begun = False
        weights, given = self._split.weights_patch()
        checking.check(self._given[0], weights, given)

    def __enter__(self) -> "Self":
        if self._stack is not None:
            raise UnsupportedError("the block of this intervention is under way; kpatch.intervene makes another one")
        self._dropped.detach()
        stack = self._stack = contextlib.ExitStack()
        self._dropped = weakref.finalize(self, end, stack, f"{self._told} was not left by its block; it ends now")
        self._dropped.atexit = False
        try:
            self._begin(stack)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _begin(self, stack: contextlib.ExitStack) -> None:
        from kpatch.names.index import index

        model = self._given[0]
        stale = self._begun and self._split.weights and backends.current().compiles_weights_in
        if stale or index(model) is not self._split.index:
            self._prepare()  # the model has changed since, or a function was compiled with the weights of then
        self._begun = True
        weights, given = self._split.weights_patch()
        if self._form is not None:
            self._calls = self._form.take(self._own, self._split, functools.partial(Calls, self._split))
            stack.callback(setattr, self._calls, "busy", False)
        self._calls.traces.begin(stack)
        self._split.check_assertions()
        if weights.statements:
            backends.current().refuse_traces("kpatch.intervene")
            stack.callback(live.apply(checking.check(model, weights, given))._of_block()._withdraw)
        self._calls.patch(model, stack)
        self._calls.traces.patched()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        self._end(kind, error, traceback)

    def _end(self, *raised: Any) -> None:
        stack, self._stack = self._stack, None
        if stack is None:
            return
        self._dropped.detach()
        stack.__exit__(*raised)  # an error of ending it names the one of the block as its context
        if raised[0] is None and not self._calls.check_called():
            warnings.warn(f"{self._told} {NO_CALL}", RuntimeWarning, stacklevel=3)

    def dismiss(self) -> None:
        """Has no warning come if there is no block, as of an intervention that was only checked."""
        self._dropped.detach()

    @left_alone
    def start(self) -> "Self":
        """Begins the block; `release()` ends it. For what a `with` statement cannot enclose."""
        return self.__enter__()

    @left_alone
    def release(self) -> None:
        """Ends the block, as leaving a `with` statement does. Without a block it does nothing.

        Raises:
            ResolutionError: a statement edits an activation that was not computed, though the model ran.
        """
        self._end(None, None, None)

    def __repr__(self) -> str:
        parts, entries = self._split.parts, [entry for _, entry in self._split.weights]
        paths = list(dict.fromkeys(each.path for each in (*parts, *entries)))
        more = [f"{len(paths) - SHOWN} more"] * (len(paths) > SHOWN)
        state = "begins with a 'with' block" if self._stack is None else "under way"
        return f"<Intervention in {', '.join([*paths[:SHOWN], *more])}: {state}>"


class Calls:
    """The calls that are patched. Activations that others read are kept for the time of one call of the model.

    Attributes:
        known: each part, with what `shapes.check` knows of it.
        specs: what each part was called with in functions that compile.
        busy: whether a block patches them, if several interventions share them.

    Args:
        parts: the parts of the patch, with cells for values of which others have been checked.
    """

    def __init__(self, split: Split, parts: list[Part] | None = None) -> None:
        self._parts: dict[tuple, list] = {}
        self.busy = False
        self.specs: list[list[Specs]] = [[] for _ in split.parts]
        self._read = {(id(node.item), kind) for part in split.parts for node, kind, *_ in part.reads.values()}
        self._source = split.patch.source
        self._under_way = threading.local()  # `calls`: the `Activations` of each call of the model, the innermost last
        places = [(part.node, part.kind) for part in split.parts]
        places += [(node, kind) for part in split.parts for node, kind, *_ in part.reads.values()]
        self._places = {(id(node.item), kind): (node.item, kind) for node, kind in places}
        self._layers = {id(layer): layer for layer, _ in self._places.values()}
        self.traces = Traces(split.index, list(self._layers.values()))
        for part, specs in zip(split.parts if parts is None else parts, self.specs, strict=True):
            self._parts.setdefault((id(part.node.item), part.kind), []).append((part, _Edit(part, self.traces, specs)))
        self._ran = False
        self._watched = _around([part.node for part in split.parts], split.index)
        for part in split.parts:
            for node, kind, _, span in part.reads.values():
                self._refuse_loops(node, kind, span)
        edits = [] if parts is not None else itertools.chain(*self._parts.values())
        self.known = [(part, shapes.check(part, edit)) for part, edit in edits]

    def _refuse_loops(self, node: LayerNode, kind: str, span: tuple[int, int]) -> None:
        """What a loop computes anew in each step cannot be read outside of it."""
        loop = loop_around(node, "RNN", "TimeDistributed")
        if loop is not None:
            message = f"'{node.item.name}.{kind}' is computed in the steps of '{loop.name}', once for each"
            raise UnsupportedError(message, span=span, source=self._source)

    def patch(self, model: Any, stack: contextlib.ExitStack) -> None:
        """Patches the calls until the stack closes."""
        for host, seen in self._sources():
            patch_call(host, functools.partial(self._called, host, seen), stack)
        for layer, kind in self._places.values():
            if kind == "scores":
                attention.unfuse(layer, stack)
        if self._read:
            patch_call(model, functools.partial(self._of_model), stack)
        self._ran = False
        for _, edit in itertools.chain(*self._parts.values()):
            edit.used = edit.used and self.traces.seen  # a function that was traced before may run, and not be noticed
        for layer in self._watched:
            patch_call(layer, self._runs, stack)
        for part, _ in itertools.chain(*self._parts.values()):
            loop = loop_around(part.node, "RNN")
            if getattr(loop, "use_cudnn", False):  # a fused kernel, which some backends have, never calls the cell
                stack.callback(setattr, loop, "use_cudnn", loop.use_cudnn)
                loop.use_cudnn = False

    def _sources(self) -> list[tuple[Any, Seen]]:
        """The layers whose calls compute what is written or read, and what it is: `(a layer, its kind, the side)`."""
        found: dict[int, tuple[Any, Seen]] = {}
        for layer, kind in self._places.values():
            host, side = attention.source(layer, kind)
            found.setdefault(id(host), (host, []))[1].append((layer, kind, side))
        return list(found.values())

    def _runs(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        if not in_dynamo() and not self._ran:
            self._ran = not is_rehearsed(args[0] if args else None)
        return call(*args, **kwargs)

    def check_called(self) -> bool:
        """Whether an activation was edited, if any is to be, as far as that is known.

        What was compiled in an earlier block of the same patch, and may have run, counts as edited.

        Raises:
            ResolutionError: the model ran, and no activation that a statement edits was computed. Under
                `torch.compile` alone it is not noticed that the model ran.
        """
        used: dict[int, list[tuple[Part, bool]]] = {}
        for part, edit in itertools.chain(*self._parts.values()):
            for statement in part.edits:
                used.setdefault(id(statement), []).append((part, edit.used))
        for found in used.values():
            if self._ran and not any(was for _, was in found):
                part = found[0][0]
                target = self._source[slice(*part.span)]
                message = f"'{target}' was not computed in the block, though the model ran, so nothing was edited"
                raise ResolutionError(
                    message, span=part.span, source=self._source, notes=[why_not_called(part.node, part.kind)]
                )
        return not used or any(was for found in used.values() for _, was in found)

    def _of_model(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        calls = vars(self._under_way).setdefault("calls", [])
        calls.append(self._activations())
        try:
            return call(*args, **kwargs)
        finally:
            calls.pop()

    def _activations(self) -> Activations:
        return Activations("in another call", self._source)

    def _called(self, host: Any, seen: Seen, call: Callable, *args: Any, **kwargs: Any) -> Any:
        inputs = Inputs(host, args, kwargs)
        for layer, kind, side in seen:
            if side == "input":
                self._patch(layer, kind, attention.seen(layer, kind, inputs))
        outputs = Outputs(host, call(*inputs.args, **inputs.kwargs))
        for layer, kind, side in seen:
            if side == "output":
                self._patch(layer, kind, attention.seen(layer, kind, outputs))
        return outputs.value

    def _patch(self, layer: Any, kind: str, held: Any) -> None:
        under_way = vars(self._under_way).get("calls")  # a change of a dict would have dynamo break its graph
        kept = under_way[-1] if under_way else self._activations()
        if (id(layer), kind) in self._read:
            kept.keep(layer, kind, held)  # as it is when it is read, edited so far
        try:
            for part, edit in self._parts.get((id(layer), kind), ()):
                self._edit(part, edit, held, kept)
        except PatchError:
            backends.current().rescue()
            raise

    def _edit(self, part: Part, edit: TensorPatch, held: Any, kept: Activations) -> None:
        if not in_dynamo():
            edit.used = True
        x = tensor_in(held, part.node, part.inner, part.span, self._source)
        values = [_live(part, name, x) if name in part.live else kept.read(part, name) for name in edit.free]
        held.replace(part.inner, edit.run(edit.free, x, *values))


class _Edit(TensorPatch):
    """A patch of an activation, which notes if it becomes a part of a compiled function; dynamo calls it untraced.

    Args:
        part: what it patches.
        traces: those of the block.
        specs: what it was called with since a function was compiled; it adds to them.
    """

    def __init__(self, part: Part, traces: Traces, specs: list[Specs]) -> None:
        super().__init__(part.patch, part.constants, "kpatch.intervene")
        self._traces = traces
        self._specs = specs

    def __call__(self, names: Any, x: Any, *given: Any) -> Any:
        self._traces.seen = self._traces.seen or is_traced(x)
        if self._traces.seen:
            specs = {"_": spec_of(x), **dict(zip(names, map(spec_of, given), strict=True))}
            if specs not in self._specs:
                self._specs.append(specs)
        return super().__call__(names, x, *given)


def spec_of(x: Any) -> tuple[tuple, str]:
    return lengths(x.shape), dtype_name(x.dtype)


def _around(nodes: list[LayerNode], index: Any) -> list[Any]:
    """The layers whose calls show that the model runs: those around others, and what is beside each of these."""
    from keras.layers import InputLayer

    around: set[LayerNode] = set()
    for node in nodes:
        holder = node.parent
        while holder is not None:
            around.add(holder)
            holder = holder.parent
    inner = {id(node) for node in nodes}
    near = [each for each in index.nodes if (each in around or each.parent in around) and id(each) not in inner]
    return [node.item for node in near if node.kind == LAYER and not isinstance(node.item, InputLayer)]


def _live(part: Part, name: str, x: Any) -> Any:
    """The present value of a binding, in the dtype of the activation if both are floating: as Keras casts inputs."""
    import keras

    value = part.live[name]
    if isinstance(value, keras.Variable):
        value = backends.current().present(value)
    elif isinstance(value, Cell):
        value = value.get()
    floating = all(dtype_name(each.dtype) in FLOATS for each in (value, x))
    return keras.ops.cast(value, x.dtype) if floating and value.dtype != x.dtype else value
