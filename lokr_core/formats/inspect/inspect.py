"""inspect_adapter: reads a file module by module, and goes on after what is refused."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from lokr_core.adapter import Adapter
from lokr_core.errors import AdapterError, MixError, UnmatchedKeysError
from lokr_core.formats.binding import Binding, FileModule
from lokr_core.formats.diffusers import metadata_configs
from lokr_core.formats.file import TensorFile, parse_file
from lokr_core.formats.info import NO_PARAMETERS, describe
from lokr_core.formats.inspect.contents import contents_of, trainer_facts
from lokr_core.formats.inspect.file_base import file_base
from lokr_core.formats.inspect.fit import fit_of
from lokr_core.formats.inspect.problems import Problems, bind_all
from lokr_core.formats.inspect.report import AdapterReport, FileFacts
from lokr_core.formats.locate import default_id
from lokr_core.formats.modules import ModuleReader, ReadModule
from lokr_core.formats.names import ModuleNames, is_peft_style
from lokr_core.formats.notes import TrainerNotes
from lokr_core.formats.peft import parse_config
from lokr_core.formats.place import place
from lokr_core.formats.read import AdapterReader
from lokr_core.formats.scale import ScaleOverrides
from lokr_core.formats.source import AdapterSource, open_source
from lokr_core.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inspection:
    """What was found of an adapter, and the adapter itself if it would be served."""

    report: AdapterReport
    adapter: Adapter | None  # None without a base model too


def inspect_adapter(path: Path, spec: ModelSpec | None = None) -> Inspection:
    """Return what can be said of an adapter; nothing that is wrong with it is raised.

    Args:
        path: Its file or folder.
        spec: The modules of the base, if it is to be held against one.
    """
    problems = Problems()
    source = problems.attempt(lambda: open_source(path))
    content = None if source is None else problems.attempt(lambda: parse_file(source.file))
    if source is None or content is None:
        return Inspection(report=_unreadable(path, problems, None), adapter=None)
    base = problems.attempt(lambda: file_base(content.tensors)) if spec is None else spec
    if base is None:
        return Inspection(
            report=_unreadable(path, problems, _file_facts(source, content)), adapter=None
        )
    examined = _examine(source, content, base, problems)
    adapter = None if problems.count else _read(path, base, problems)
    report = AdapterReport(
        adapter_id=default_id(path),
        version=None if adapter is None else adapter.ref.version,
        file=_file_facts(source, content),
        contents=contents_of(examined.modules, is_peft=examined.is_peft),
        fit=None if spec is None else fit_of(spec, examined.bound, examined.binding.unmatched),
        warnings=examined.warnings if adapter is None else adapter.warnings,
        problems=problems.first,
        num_problems=problems.count,
    )
    return Inspection(report=report, adapter=None if spec is None else adapter)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Examined:
    modules: list[ReadModule]
    bound: frozenset[str]
    binding: Binding
    is_peft: bool
    warnings: tuple[str, ...]


def _examine(
    source: AdapterSource, content: TensorFile, base: ModelSpec, problems: Problems
) -> _Examined:
    """Bind and read what can be bound and read."""
    text = source.config
    config = None if text is None else problems.attempt(lambda: parse_config(text))
    knows_scale = text is None or config is not None
    reader = ModuleReader(
        spec=base,
        config=config,
        notes=TrainerNotes.of(content.metadata),
        is_peft=text is not None or is_peft_style(content.tensors),
        overrides=ScaleOverrides(scale=None if knows_scale else 1.0),  # so that the rest is read
        component_configs=problems.attempt(lambda: metadata_configs(content.metadata)) or {},
    )
    binding = bind_all(content.tensors, ModuleNames(base), problems)
    for error in binding.refused:
        problems.add(error)
    if binding.unmatched:
        problems.add(UnmatchedKeysError(binding.unmatched))
    found = [_read_module(reader, module, problems) for module in binding.modules]
    modules = [m if knows_scale else replace(m, scale=None) for m in found if m is not None]
    told = replace(binding, unmatched=())  # a problem here, and no warning
    return _Examined(
        modules=modules,
        warnings=describe(reader, modules, {}, told, source.file.digest()).warnings,
        bound=frozenset(t.spec.path for module in binding.modules for t in module.targets),
        binding=binding,
        is_peft=reader.is_peft,
    )


def _read_module(reader: ModuleReader, module: FileModule, problems: Problems) -> ReadModule | None:
    read = problems.attempt(lambda: reader.read(module))
    if read is not None:
        problems.attempt(lambda: place([(module, read.change)]))
    return read


def _read(path: Path, base: ModelSpec, problems: Problems) -> Adapter | None:
    """Read the whole; what is wrong with all of it together shows now."""
    try:
        return AdapterReader(base).read(path)
    except (AdapterError, MixError) as error:
        problems.add(error)
        return None


def _unreadable(path: Path, problems: Problems, file: FileFacts | None) -> AdapterReport:
    return AdapterReport(
        adapter_id=default_id(path),
        version=None,
        file=file,
        contents=None,
        fit=None,
        warnings=(),
        problems=problems.first,
        num_problems=problems.count,
    )


def _file_facts(source: AdapterSource, content: TensorFile) -> FileFacts:
    tensors = content.tensors
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return FileFacts(
        path=str(source.file.path),
        digest=source.file.digest(),
        num_tensors=len(tensors),
        num_parameters=sum(
            tensor.numel()
            for key, tensor in tensors.items()
            if key.rpartition(".")[2] not in NO_PARAMETERS
        ),
        num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        dtypes=dict(dtypes.most_common()),
        trainer=trainer_facts(content, source.config),
    )
