"""The fields of Triton's ``ModelConfig`` that vitslim writes, so that protobuf itself can read a config strictly.

Names, numbers and types are those of protobuf/model_config.proto in triton-inference-server/common.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_KINDS = {"string": 9, "int32": 5, "int64": 3, "uint64": 4}
_ENUMS = {
    "DataType": {
        "TYPE_INVALID": 0,
        "TYPE_BOOL": 1,
        "TYPE_UINT8": 2,
        "TYPE_INT32": 8,
        "TYPE_INT64": 9,
        "TYPE_FP16": 10,
        "TYPE_FP32": 11,
        "TYPE_BF16": 14,
    },
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
_MESSAGES = {
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "int64*")},
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "int64*"),
        "label_filename": (4, "string"),
    },
    "ModelInstanceGroup": {"kind": (4, "Kind"), "count": (2, "int32")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, "int32*"), "max_queue_delay_microseconds": (2, "uint64")},
    "ModelParameter": {"string_value": (1, "string")},
    "Parameters": {"key": (1, "string"), "value": (2, "ModelParameter")},
    "ModelConfig": {
        "name": (1, "string"),
        "backend": (17, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "instance_group": (7, "ModelInstanceGroup*"),
        "default_model_filename": (8, "string"),
        "parameters": (14, "Parameters*"),
    },
}


def parse(text: str) -> Any:
    """The config as a message; an unknown field or enum, or a wrong type, is an error."""
    return text_format.Parse(text, _model_config()())


def _model_config() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="inference", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            base = kind.removesuffix("*")
            one = message.field.add(name=field, number=number, label=3 if kind.endswith("*") else 1)
            one.type = _KINDS.get(base, 14 if base in _ENUMS else 11)
            if base not in _KINDS:
                one.type_name = f".inference.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
