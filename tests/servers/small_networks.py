"""LiteRT networks made by hand, of a few operators: no TensorFlow, and what they compute is plain to see."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_TYPES = {"float32": schema.TensorType.FLOAT32, "uint8": schema.TensorType.UINT8, "int32": schema.TensorType.INT32}


class _Graph:
    """A graph that grows."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]

    def tensor(self, shape: tuple[int, ...], dtype: str = "float32") -> int:
        self.tensors.append(
            schema.TensorT(shape=list(shape), type=_TYPES[dtype], buffer=0, name=f"t{len(self.tensors)}")
        )
        return len(self.tensors) - 1

    def constant(self, value: np.ndarray) -> int:
        place = self.tensor(value.shape, str(value.dtype))
        self.tensors[place].buffer = len(self.buffers)
        self.buffers.append(schema.BufferT(data=np.frombuffer(value.tobytes(), np.uint8)))
        return place

    def apply(self, kind: int, inputs: list[int], shape: tuple[int, ...], options: tuple[int, Any] = (0, None)) -> int:
        output = self.tensor(shape)
        self.codes.append(schema.OperatorCodeT(deprecatedBuiltinCode=kind, builtinCode=kind))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=len(self.codes) - 1,
                inputs=inputs,
                outputs=[output],
                builtinOptionsType=options[0],
                builtinOptions=options[1],
            )
        )
        return output

    def pooled(self, maps: int, channels: int) -> int:
        options = schema.BuiltinOptions.ReducerOptions, schema.ReducerOptionsT()
        axes = self.constant(np.array([1, 2], np.int32))
        return self.apply(schema.BuiltinOperator.MEAN, [maps, axes], (1, channels), options)

    def encoded(self, start: int, end: int) -> bytes:
        graph = schema.SubGraphT(tensors=self.tensors, inputs=[start], outputs=[end], operators=self.operators)
        model = schema.ModelT(version=3, operatorCodes=self.codes, subgraphs=[graph], buffers=self.buffers)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def mean_colour(image_size: int) -> bytes:
    """A trunk: an image's mean red, green and blue. Its map is the image itself."""
    graph = _Graph()
    image = graph.tensor((1, image_size, image_size, 3), "uint8")
    as_floats = graph.apply(schema.BuiltinOperator.CAST, [image], (1, image_size, image_size, 3))
    return graph.encoded(image, graph.pooled(as_floats, 3))


def mean_colour_classes(image_size: int, kernel_CK: np.ndarray) -> bytes:
    """A tail on an image's pixels, flattened: logits that are linear in its mean colour."""
    graph = _Graph()
    pixels = graph.tensor((1, image_size * image_size * 3))
    shape = np.array([1, image_size, image_size, 3], np.int32)
    maps = graph.apply(schema.BuiltinOperator.RESHAPE, [pixels, graph.constant(shape)], tuple(shape))
    weights = graph.constant(np.ascontiguousarray(kernel_CK.T))
    options = schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT()
    inputs = [graph.pooled(maps, 3), weights, graph.constant(np.zeros(kernel_CK.shape[1], np.float32))]
    return graph.encoded(
        pixels, graph.apply(schema.BuiltinOperator.FULLY_CONNECTED, inputs, (1, kernel_CK.shape[1]), options)
    )
