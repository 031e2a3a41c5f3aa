"""convert: an adapter, written in another layout and read back before it gets its name."""

from dataclasses import dataclass
from pathlib import Path

from lokr_core.adapter import Adapter
from lokr_core.errors import AdapterError, AdapterFileError
from lokr_core.formats.binding import bind
from lokr_core.formats.convert.canonical import METADATA, canonical_tensors
from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.lycoris import lycoris_tensors
from lokr_core.formats.convert.modules import SourceModule, source_modules
from lokr_core.formats.convert.peft import peft_files
from lokr_core.formats.convert.verify import first_difference
from lokr_core.formats.file import TensorFile, parse_file
from lokr_core.formats.inspect.file_base import file_base
from lokr_core.formats.layouts import Layout
from lokr_core.formats.locate import CONFIG_NAME, SUFFIX, TENSORS_NAME
from lokr_core.formats.modules import ModuleReader
from lokr_core.formats.names import ModuleNames
from lokr_core.formats.read import AdapterReader, ReadOptions
from lokr_core.formats.source import open_source
from lokr_core.formats.write import encode, staged
from lokr_core.spec import ModelSpec

# What a trainer says of the base, and nothing that a scale follows from.
_KEPT_METADATA = ("modelspec.", "ss_base_model_version", "ss_sd_model_name")
_OTHER_NAMES = ("lycoris_", "lora_", "diffusion_model.", "model.diffusion_model.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written."""

    path: Path
    layout: Layout
    num_modules: int
    num_parameters: int
    num_bytes: int  # of the tensor file
    digest: str  # hex SHA-256 of the tensor file
    warnings: tuple[str, ...]  # of the source as it was read: what it does not say, and is written


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Opened:
    """An adapter, and the tensors of its file by module."""

    adapter: Adapter
    content: TensorFile
    modules: list[SourceModule]


def convert(
    source: Path,
    out: Path,
    layout: Layout,
    *,
    spec: ModelSpec | None = None,
    options: ReadOptions | None = None,
) -> Conversion:
    """Write an adapter in another layout; what is written gives the very same adapter.

    Args:
        source: The adapter's file or folder.
        out: What to write: a safetensors file, or a folder of PEFT. It must not exist.
        layout: The layout to write.
        spec: The base's modules; may be left out if the file names them by their paths.
        options: How to read the source.

    Raises:
        ConversionError: The layout has no exact form of a module.
        AdapterError: The source cannot be read, or the output cannot be written.
    """
    if layout is not Layout.PEFT and out.suffix != SUFFIX:
        problem = f"a file in the {layout.value} layout must have a name that ends in {SUFFIX}"
        raise AdapterFileError(f"{out}: {problem}")
    opened = _open(source, spec, options or ReadOptions())
    with staged(out) as stage:
        _write(opened, stage, layout)
        written = _read_back(opened, stage)
        tensors_path = stage / TENSORS_NAME if layout is Layout.PEFT else stage
        return Conversion(
            path=out,
            layout=layout,
            num_modules=len(opened.modules),
            num_parameters=written.info.num_parameters,
            num_bytes=tensors_path.stat().st_size,
            digest=written.info.digest,
            warnings=opened.adapter.warnings,
        )


def _open(source: Path, spec: ModelSpec | None, options: ReadOptions) -> _Opened:
    opened = open_source(source)
    content = parse_file(opened.file)
    if spec is None:
        spec = file_base(content.tensors)
        _check_paths(spec)
    adapter = AdapterReader(spec).read(source, "source", options)
    reader = ModuleReader.of(spec, content, opened.config, options.overrides)
    bound = bind(content.tensors, ModuleNames(spec)).modules
    modules = source_modules(bound, reader, adapter.layout.modules.keys())
    return _Opened(adapter=adapter, content=content, modules=modules)


def _check_paths(spec: ModelSpec) -> None:
    """Check that names may be paths: flattening a path cannot be undone without the base."""
    for path in spec.modules:
        if path.startswith(_OTHER_NAMES):
            raise ConversionError(
                path, "its path in the base cannot be told from this name; give the base model"
            )


def _write(opened: _Opened, stage: Path, layout: Layout) -> None:
    spec, modules = opened.adapter.spec, opened.modules
    metadata = {
        key: value
        for key, value in opened.content.metadata.items()
        if key.startswith(_KEPT_METADATA)
    }
    match layout:
        case Layout.CANONICAL:
            tensors = canonical_tensors(modules)
            stage.write_bytes(encode(tensors, {**metadata, **METADATA}))
        case Layout.LYCORIS:
            stage.write_bytes(encode(lycoris_tensors(modules, spec.components), metadata))
        case Layout.PEFT:
            files = peft_files(modules, spec)
            stage.mkdir()
            (stage / TENSORS_NAME).write_bytes(encode(files.tensors, {"format": "pt"}))
            (stage / CONFIG_NAME).write_text(files.config, encoding="utf-8")


def _read_back(opened: _Opened, stage: Path) -> Adapter:
    """Return what was written, as it is read.

    Raises:
        ConversionError: It is not the adapter that it was made of.
    """
    try:
        written = AdapterReader(opened.adapter.spec).read(stage, "written")
    except AdapterError as error:
        raise ConversionError(opened.modules[0].path, f"reads back as: {error}") from error
    module = first_difference(opened.adapter, written)
    if module is not None:
        raise ConversionError(module, "does not read back as the same change of the base")
    return written
