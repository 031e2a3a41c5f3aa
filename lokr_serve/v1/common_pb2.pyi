from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ApplyMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    APPLY_MODE_UNSPECIFIED: _ClassVar[ApplyMode]
    APPLY_MODE_AUTO: _ClassVar[ApplyMode]
    APPLY_MODE_UNMERGED: _ClassVar[ApplyMode]
    APPLY_MODE_MERGED: _ClassVar[ApplyMode]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
APPLY_MODE_UNSPECIFIED: ApplyMode
APPLY_MODE_AUTO: ApplyMode
APPLY_MODE_UNMERGED: ApplyMode
APPLY_MODE_MERGED: ApplyMode
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority

class AdapterWeight(_message.Message):
    __slots__ = ("adapter_id", "weight", "module_weights")
    class ModuleWeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MODULE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    weight: float
    module_weights: _containers.ScalarMap[str, float]
    def __init__(self, adapter_id: _Optional[str] = ..., weight: _Optional[float] = ..., module_weights: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ResolvedAdapter(_message.Message):
    __slots__ = ("adapter_id", "version", "weight")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    version: str
    weight: float
    def __init__(self, adapter_id: _Optional[str] = ..., version: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...
