"""LiteRT flatbuffers that end in global average pooling: what they pool, what they do after it, and the same bytes with
other outputs.

Only reads and edits; `activation_maps` runs them. The schema is LiteRT's own, as `ai_edge_litert` brings it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from services.contracts.errors import CorruptObject, InternalError

_MAP_RANK = 4
_SPATIAL_AXES = {1, 2}
_OUTPUTS_FIELD = 8
"""Of a subgraph's table: where its vtable has the place of `outputs`."""
_DTYPES = {
    schema.TensorType.FLOAT32: np.dtype("<f4"),
    schema.TensorType.INT32: np.dtype("<i4"),
    schema.TensorType.INT64: np.dtype("<i8"),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of a graph."""

    kind: int
    """Of `BuiltinOperator`."""
    inputs: tuple[int, ...]
    """Tensors; -1 for an optional one that is not there."""
    output: int


@dataclass(frozen=True, slots=True, eq=False)
class PooledGraph:
    """The end of a graph, from the map that it pools to its output."""

    map_tensor: int
    """float32 [1, H, W, C]."""
    pooled_tensor: int
    """The mean of the map over H and W."""
    output_tensor: int
    operations: tuple[Operation, ...]
    """From the pooled tensor to the output, in order; none where they are the same."""
    constants: Mapping[int, npt.NDArray[Any]]
    """What else the operations use."""
    shapes: Mapping[int, tuple[int, ...]]
    """Of the pooled tensor and the operations' outputs."""


def read_pooled_graph(flatbuffer: bytes) -> PooledGraph:
    """Finds the last mean over height and width.

    Raises `CorruptObject` for bytes that are no LiteRT model, and `InternalError` where there is no such mean, or where
    the output depends on the image in another way than through it.
    """
    if not schema.Model.ModelBufferHasIdentifier(flatbuffer, 0):
        raise CorruptObject("the network is not a LiteRT model")
    model: Any = schema.Model.GetRootAs(flatbuffer)
    graph = model.Subgraphs(0)
    operators = [graph.Operators(place) for place in range(graph.OperatorsLength())]
    places = [place for place, operator in enumerate(operators) if _is_pooling(model, graph, operator)]
    if not places:
        raise InternalError("the network ends in no mean over height and width: it cannot be explained")
    pooling, output = operators[places[-1]], int(graph.Outputs(0))
    pooled = int(pooling.Outputs(0))
    operations: list[Operation] = []
    needed = {output}
    for operator in reversed(operators[places[-1] + 1 :]):
        operation = _operation(model, operator)
        if operation.output in needed:
            needed.remove(operation.output)
            needed.update(tensor for tensor in operation.inputs if tensor >= 0)
            operations.insert(0, operation)
    constants = {tensor: _constant(model, graph, tensor) for tensor in needed - {pooled}}
    if pooled not in needed or any(value is None for value in constants.values()):
        raise InternalError("the network's output does not depend on its last mean alone: it cannot be explained")
    return PooledGraph(
        map_tensor=int(pooling.Inputs(0)),
        pooled_tensor=pooled,
        output_tensor=output,
        operations=tuple(operations),
        constants={tensor: value for tensor, value in constants.items() if value is not None},
        shapes={tensor: _shape(graph, tensor) for tensor in (pooled, *(each.output for each in operations))},
    )


def with_outputs(flatbuffer: bytes, tensors: tuple[int, ...]) -> bytes:
    """The same model with these tensors as its graph's outputs.

    The new list lies behind the old bytes, and the graph's table points at it: the weights stay where they are, aligned
    as the converter left them. Signatures still name the old outputs.
    """
    edited = bytearray(flatbuffer)
    edited += bytes(-len(edited) % 4)
    start = len(edited)
    edited += struct.pack(f"<I{len(tensors)}i", len(tensors), *tensors)
    model: Any = schema.Model.GetRootAs(edited)
    table = model.Subgraphs(0)._tab
    field = table.Pos + table.Offset(_OUTPUTS_FIELD)
    struct.pack_into("<I", edited, field, start - field)
    return bytes(edited)


def _kind(model: Any, operator: Any) -> int:
    code = model.OperatorCodes(operator.OpcodeIndex())
    return max(int(code.BuiltinCode()), int(code.DeprecatedBuiltinCode()))  # the first is 0 in old files


def _is_pooling(model: Any, graph: Any, operator: Any) -> bool:
    if _kind(model, operator) != schema.BuiltinOperator.MEAN:
        return False
    axes = _constant(model, graph, int(operator.Inputs(1)))
    if axes is None or len(_shape(graph, int(operator.Inputs(0)))) != _MAP_RANK:
        return False
    return {int(axis) % _MAP_RANK for axis in axes.ravel()} == _SPATIAL_AXES


def _operation(model: Any, operator: Any) -> Operation:
    options = schema.OperatorT.InitFromObj(operator).builtinOptions
    if getattr(options, "fusedActivationFunction", 0) != schema.ActivationFunctionType.NONE:
        raise InternalError("the network has an activation after its last mean: it cannot be explained")
    return Operation(
        kind=_kind(model, operator),
        inputs=tuple(int(operator.Inputs(place)) for place in range(operator.InputsLength())),
        output=int(operator.Outputs(0)),
    )


def _shape(graph: Any, tensor: int) -> tuple[int, ...]:
    described = graph.Tensors(tensor)
    return tuple(int(described.Shape(axis)) for axis in range(described.ShapeLength()))


def _constant(model: Any, graph: Any, tensor: int) -> npt.NDArray[Any] | None:
    """The tensor's values, or None where it is computed or of a type that is of no use here."""
    described = graph.Tensors(tensor)
    buffer = model.Buffers(described.Buffer())
    dtype = _DTYPES.get(described.Type())
    if dtype is None or buffer.DataLength() == 0:
        return None
    return np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype).reshape(_shape(graph, tensor))
