"""Loading a pipeline from a folder of diffusers; nothing is downloaded, and no code is run."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import diffusers
import torch
import transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines import stable_diffusion
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lokr_serve.config import ModelSettings
from lokr_serve.errors import ModelError
from lokr_serve.image.families import Family, pipeline_class
from lokr_serve.image.index import Component, read_index
from lokr_serve.image.schedulers import require_scheduler
from lokr_serve.image.tokenizers import serial_tokenizer
from lokr_serve.image.weights import find_variant, stored_dtype
from lokr_serve.pretrained import (
    CONFIG_NAME,
    find_device,
    read_weights,
    reading,
    require_complete,
)

_LIBRARIES = {
    "diffusers": diffusers,
    "transformers": transformers,
    "stable_diffusion": stable_diffusion,  # of the safety checker
}
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}  # by transformers, since


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedPipeline:
    """A pipeline with its modules on their device, in evaluation mode and without gradients."""

    family: Family
    pipeline: DiffusionPipeline  # of the family's text-to-image class

    @property
    def name(self) -> str:
        """The name of the folder that it was loaded from."""
        return Path(self.pipeline.name_or_path or "").name


class _Loadable(Protocol):
    @classmethod
    def from_pretrained(cls, folder: Path, *, local_files_only: bool) -> object:
        """Return what the folder holds."""


def load_pipeline(settings: ModelSettings) -> LoadedPipeline:
    """Return the pipeline of a folder, ready for inference on its device; takes long.

    Raises:
        SettingsError: The device is not there.
        ModelError: The pipeline cannot be loaded, or is of a kind that is not served.
    """
    device = find_device(settings.device)
    index = read_index(settings.path)
    components = {
        component.name: _read_component(component, settings, index.family)
        for component in index.components
    }
    for name, part in components.items():
        if isinstance(part, nn.Module):
            nn.Module.eval(nn.Module.to(part, device)).requires_grad_(False)
        if isinstance(part, PreTrainedTokenizerBase):
            components[name] = serial_tokenizer(part)  # requests share it between their threads
    with reading(settings.path, ModelError):
        pipeline = build_pipeline(index.family.text_to_image, components, index.options)
    require_scheduler(pipeline.components["scheduler"], index.family.name)
    pipeline.register_to_config(_name_or_path=str(settings.path.resolve()))
    return LoadedPipeline(family=index.family, pipeline=pipeline)


def build_pipeline(
    class_name: str, components: Mapping[str, object], options: Mapping[str, object]
) -> DiffusionPipeline:
    """Return a pipeline over components, which it does not own.

    Args:
        class_name: Of a family.
        components: By name; one that the class has and that is not here is None.
        options: Of the constructor; one that it does not have is left out.
    """
    made = pipeline_class(class_name)
    given = {**options, **components}
    if given.get("safety_checker") is None:
        given["requires_safety_checker"] = False  # or each pipeline that is made would warn
    arguments = {
        name: given.get(name, None if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(made).parameters.items()
    }
    return made(**arguments)


def _read_component(component: Component, settings: ModelSettings, family: Family) -> object:
    folder = settings.path / component.name
    if component.name.startswith("tokenizer") and component.class_name.endswith("Processor"):
        # Its tokenizer is all that prompts need; the rest, which is for images that a text
        # encoder would see, cannot be made without torchvision.
        return _read_plain(AutoTokenizer, folder)
    kind = _class_of(component, folder)
    if issubclass(kind, PreTrainedModel):
        return read_weights(kind, folder, settings.dtype, find_variant(folder))
    if issubclass(kind, ModelMixin):
        return _read_module(kind, folder, settings, family)
    return _read_plain(kind, folder)


def _class_of(component: Component, folder: Path) -> type:
    library = _LIBRARIES.get(component.library)
    if library is None:
        raise ModelError(
            f"model.path: the class of {folder} is in {component.library!r}, and code that is "
            "neither of diffusers nor of transformers is not run"
        )
    class_name = _RENAMED.get(component.class_name, component.class_name)
    found: object = getattr(library, class_name, None)
    if not isinstance(found, type):
        raise ModelError(
            f"model.path: {component.library} has no class {class_name!r}, which {folder} is of"
        )
    return found


def _read_plain(kind: type, folder: Path) -> object:
    with reading(folder, ModelError):
        return cast(_Loadable, kind).from_pretrained(folder, local_files_only=True)


def _read_module(
    kind: type[ModelMixin], folder: Path, settings: ModelSettings, family: Family
) -> ModelMixin:
    variant = find_variant(folder)
    is_auto = settings.dtype == "auto"
    dtype = stored_dtype(folder, variant) if is_auto else _DTYPES[settings.dtype]
    if family.upcasts_vae and folder.name == "vae" and dtype == torch.float16:
        # It would overflow, and the pipeline would turn it over while others use it.
        dtype = torch.float32 if _must_upcast(folder) else dtype
    with reading(folder, ModelError):
        loaded: object = kind.from_pretrained(
            folder,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            variant=variant,
        )
    module, report = cast(tuple[ModelMixin, dict[str, list[str]]], loaded)
    require_complete(folder, report["missing_keys"])
    return module


def _must_upcast(folder: Path) -> bool:
    path = folder / CONFIG_NAME
    with reading(path, ModelError):
        return bool(json.loads(path.read_text()).get("force_upcast", True))
