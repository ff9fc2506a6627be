"""Patches in the traces by which Keras exports to onnx and openvino from torch."""

import importlib
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch

from kpatch.backends.exporting import Exporting
from kpatch.errors import UnsupportedError

EXPORTER = "torch.onnx._internal.torchscript_exporter"
OPSET = 20  # of onnx, to which torch exports
REPLACED = {"Int", "IntImplicit", "ScalarImplicit", "FloatImplicit", "lift_fresh"}  # before it is converted
SAMPLES = ((3, 2.0), (5, 0.5), (8, 50.0))  # lengths of the axes that are not known, and sizes of the entries


class Traced(Exporting):
    """torch's exporter to onnx lacks `ravel`, which Keras's `take` calls, and `sort`."""

    def __init__(self) -> None:
        super().__init__()
        vars(self.ops).update(take=_take, take_along_axis=_take_along)

    def largest_in_segments(self, values, segments, count):
        empty = torch.full((count,), -1, dtype=torch.int64, device=segments.device)
        return empty.scatter_reduce(0, segments.long(), values.long(), "amax").int()

    def places_in_order(self, x, axis):
        """Without `stable=True`, which torch's exporter to onnx lacks, and which onnx means."""
        return torch.sort(x, axis)[1]

    def made(self, call, values, free, using):
        """torch's tracer takes lengths for constants, and says nothing: so what it makes of the call is tried."""
        with ThreadPoolExecutor(1) as apart:  # where nothing is traced yet
            graph, same = apart.submit(_traced, call, values, free, using(self)).result()
        if graph is not None and (lacking := sorted(self.lacking(graph))):
            message = f"this patch cannot be exported to onnx, which has nothing for {', '.join(lacking)} of torch"
            raise UnsupportedError(message)
        if not same:
            message = "the patch cannot be exported to this format: it depends on a length that is not known there"
            raise UnsupportedError(message, notes=["input_signature=... of model.export gives all lengths"])
        with using(self):
            return call(*values)

    def lacking(self, graph):
        """The operations of a graph that cannot be exported."""
        return set()


class TracedToOnnx(Traced):
    def lacking(self, graph):
        try:
            for number in range(7, OPSET + 1):
                importlib.import_module(f"{EXPORTER}.symbolic_opset{number}")  # registers what it converts
            registry = importlib.import_module(f"{EXPORTER}.registration").registry
        except ImportError:  # it is private; then torch itself refuses, by its own error
            return set()
        kinds = {node.kind() for node in graph.nodes() if node.kind().startswith("aten::")}
        lacking = {kind.removeprefix("aten::") for kind in kinds if not registry.is_registered_op(kind, OPSET)}
        return {kind for kind in lacking - REPLACED if not kind.endswith("_")}  # as those that write in place


def _take(x, indices, axis):
    """By indices that are not negative."""
    indices = torch.as_tensor(indices, device=x.device).long()
    axis = axis % x.dim()
    taken = torch.index_select(x, axis, indices.reshape(-1))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _take_along(x, indices, axis):
    return torch.gather(x, axis, indices.long())


def _traced(call, values, free, exporting):
    """The graph that torch's tracer makes of a call, and whether it is right for other lengths of the axes `free`."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each length that it takes for a constant
        try:
            with exporting:
                traced = torch.jit.trace(lambda *given: call(*given), _sample(values, free, 1, 1.0), check_trace=False)
        except Exception:  # noqa: BLE001 (of any kind, by lengths that are tensors)
            return None, False
        samples = [_sample(values, free, *sample) for sample in SAMPLES if free]
        return traced.inlined_graph, all(_agree(traced, call, sample) for sample in samples)


def _sample(values, free, length, size):
    """Tensors as `values`, the first one with entries up to `size`, and that length of its axes `free`."""
    first, *others = values
    shape = [length if axis in free else count for axis, count in enumerate(map(int, first.shape))]
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(length)) * 2 - 1
    return [(numbers * size).to(first.device, first.dtype), *(value.detach().clone() for value in others)]


def _agree(traced, call, sample):
    try:
        found, expected = traced(*sample), call(*sample)
    except Exception:  # noqa: BLE001 (of any kind, by a graph that is wrong)
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, 1e-4, 1e-5, equal_nan=True)
