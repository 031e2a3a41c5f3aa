import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from lokr_serve.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_RAW: _ClassVar[ImageFormat]

class ChunkKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHUNK_KIND_UNSPECIFIED: _ClassVar[ChunkKind]
    CHUNK_KIND_IMAGE: _ClassVar[ChunkKind]
    CHUNK_KIND_LATENTS: _ClassVar[ChunkKind]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_RAW: ImageFormat
CHUNK_KIND_UNSPECIFIED: ChunkKind
CHUNK_KIND_IMAGE: ChunkKind
CHUNK_KIND_LATENTS: ChunkKind

class InitImage(_message.Message):
    __slots__ = ("data", "strength")
    DATA_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    strength: float
    def __init__(self, data: _Optional[bytes] = ..., strength: _Optional[float] = ...) -> None: ...

class ImageParams(_message.Message):
    __slots__ = ("width", "height", "num_steps", "guidance_scale", "true_cfg_scale", "seed", "scheduler", "num_images", "init_image")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    TRUE_CFG_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    INIT_IMAGE_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    num_steps: int
    guidance_scale: float
    true_cfg_scale: float
    seed: int
    scheduler: str
    num_images: int
    init_image: InitImage
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., num_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., true_cfg_scale: _Optional[float] = ..., seed: _Optional[int] = ..., scheduler: _Optional[str] = ..., num_images: _Optional[int] = ..., init_image: _Optional[_Union[InitImage, _Mapping]] = ...) -> None: ...

class ImageOutput(_message.Message):
    __slots__ = ("format", "quality", "latents", "metadata", "preview_interval")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    quality: int
    latents: bool
    metadata: bool
    preview_interval: int
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ..., latents: _Optional[bool] = ..., metadata: _Optional[bool] = ..., preview_interval: _Optional[int] = ...) -> None: ...

class ScheduledFactor(_message.Message):
    __slots__ = ("step", "factor")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    step: int
    factor: float
    def __init__(self, step: _Optional[int] = ..., factor: _Optional[float] = ...) -> None: ...

class WeightSchedule(_message.Message):
    __slots__ = ("adapter_id", "points")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    points: _containers.RepeatedCompositeFieldContainer[ScheduledFactor]
    def __init__(self, adapter_id: _Optional[str] = ..., points: _Optional[_Iterable[_Union[ScheduledFactor, _Mapping]]] = ...) -> None: ...

class GenerateImageRequest(_message.Message):
    __slots__ = ("request_id", "adapters", "prompt", "negative_prompt", "params", "output", "apply_mode", "schedules", "priority")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    APPLY_MODE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    adapters: _containers.RepeatedCompositeFieldContainer[_common_pb2.AdapterWeight]
    prompt: str
    negative_prompt: str
    params: ImageParams
    output: ImageOutput
    apply_mode: _common_pb2.ApplyMode
    schedules: _containers.RepeatedCompositeFieldContainer[WeightSchedule]
    priority: _common_pb2.Priority
    def __init__(self, request_id: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_common_pb2.AdapterWeight, _Mapping]]] = ..., prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., params: _Optional[_Union[ImageParams, _Mapping]] = ..., output: _Optional[_Union[ImageOutput, _Mapping]] = ..., apply_mode: _Optional[_Union[_common_pb2.ApplyMode, str]] = ..., schedules: _Optional[_Iterable[_Union[WeightSchedule, _Mapping]]] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class GenerateImageResponse(_message.Message):
    __slots__ = ("started", "progress", "preview", "chunk", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: ImageStarted
    progress: ImageProgress
    preview: ImagePreview
    chunk: ImageChunk
    finished: ImageFinished
    def __init__(self, started: _Optional[_Union[ImageStarted, _Mapping]] = ..., progress: _Optional[_Union[ImageProgress, _Mapping]] = ..., preview: _Optional[_Union[ImagePreview, _Mapping]] = ..., chunk: _Optional[_Union[ImageChunk, _Mapping]] = ..., finished: _Optional[_Union[ImageFinished, _Mapping]] = ...) -> None: ...

class ImageStarted(_message.Message):
    __slots__ = ("request_id", "adapters", "mix_name", "apply_mode", "seed", "width", "height", "num_steps", "scheduler")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MIX_NAME_FIELD_NUMBER: _ClassVar[int]
    APPLY_MODE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    adapters: _containers.RepeatedCompositeFieldContainer[_common_pb2.ResolvedAdapter]
    mix_name: str
    apply_mode: _common_pb2.ApplyMode
    seed: int
    width: int
    height: int
    num_steps: int
    scheduler: str
    def __init__(self, request_id: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_common_pb2.ResolvedAdapter, _Mapping]]] = ..., mix_name: _Optional[str] = ..., apply_mode: _Optional[_Union[_common_pb2.ApplyMode, str]] = ..., seed: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., num_steps: _Optional[int] = ..., scheduler: _Optional[str] = ...) -> None: ...

class ImageProgress(_message.Message):
    __slots__ = ("step", "num_steps")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    step: int
    num_steps: int
    def __init__(self, step: _Optional[int] = ..., num_steps: _Optional[int] = ...) -> None: ...

class ImagePreview(_message.Message):
    __slots__ = ("index", "step", "width", "height", "data")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    index: int
    step: int
    width: int
    height: int
    data: bytes
    def __init__(self, index: _Optional[int] = ..., step: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImageHeader(_message.Message):
    __slots__ = ("format", "width", "height", "seed", "digest", "flagged")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    width: int
    height: int
    seed: int
    digest: str
    flagged: bool
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., seed: _Optional[int] = ..., digest: _Optional[str] = ..., flagged: _Optional[bool] = ...) -> None: ...

class ImageChunk(_message.Message):
    __slots__ = ("index", "kind", "offset", "total_bytes", "data", "header")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    index: int
    kind: ChunkKind
    offset: int
    total_bytes: int
    data: bytes
    header: ImageHeader
    def __init__(self, index: _Optional[int] = ..., kind: _Optional[_Union[ChunkKind, str]] = ..., offset: _Optional[int] = ..., total_bytes: _Optional[int] = ..., data: _Optional[bytes] = ..., header: _Optional[_Union[ImageHeader, _Mapping]] = ...) -> None: ...

class ImageUsage(_message.Message):
    __slots__ = ("num_steps", "num_denoiser_rows")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_DENOISER_ROWS_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    num_denoiser_rows: int
    def __init__(self, num_steps: _Optional[int] = ..., num_denoiser_rows: _Optional[int] = ...) -> None: ...

class ImageTiming(_message.Message):
    __slots__ = ("queue", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ImageFinished(_message.Message):
    __slots__ = ("index", "seed", "mix_name", "apply_mode", "usage", "timing")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MIX_NAME_FIELD_NUMBER: _ClassVar[int]
    APPLY_MODE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    index: int
    seed: int
    mix_name: str
    apply_mode: _common_pb2.ApplyMode
    usage: ImageUsage
    timing: ImageTiming
    def __init__(self, index: _Optional[int] = ..., seed: _Optional[int] = ..., mix_name: _Optional[str] = ..., apply_mode: _Optional[_Union[_common_pb2.ApplyMode, str]] = ..., usage: _Optional[_Union[ImageUsage, _Mapping]] = ..., timing: _Optional[_Union[ImageTiming, _Mapping]] = ...) -> None: ...
