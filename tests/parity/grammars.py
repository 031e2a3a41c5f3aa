"""Grammars: the names under which trainers and converters write one and the same module."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """How a module's name is spelt, and in which component of the base it then lies.

    ``others`` are components of the same modules, which the name must not be taken to mean.
    """

    spelling: str  # {dotted} and {flat} stand for the module's path
    component: str = "transformer"
    others: tuple[str, ...] = ENCODERS

    def rename(self, source: Path, target: Path) -> Path:
        """Write a file of LyCORIS anew, with its modules' names in this spelling."""
        save_file({self._key(key): tensor for key, tensor in load_file(source).items()}, target)
        return target

    def _key(self, key: str) -> str:
        module, _, leaf = key.partition(".")
        flat = module.removeprefix("lycoris_")
        return f"{self.spelling.format(flat=flat, dotted=_DOTTED[flat])}.{leaf}"


_DOTTED = {"blocks_0_to_out": "blocks.0.to_out", "blocks_0_side": "blocks.0.side"}


def _alone(spelling: str, component: str = "") -> Grammar:
    return Grammar(spelling=spelling, component=component, others=())


def _encoder(spelling: str, number: int) -> Grammar:
    component = ENCODERS[number - 1]
    others = tuple(name for name in (*ENCODERS, "transformer") if name != component)
    return Grammar(spelling=spelling, component=component, others=others)


GRAMMARS: Mapping[str, Grammar] = {
    "lycoris": _alone("lycoris_{flat}"),
    "lycoris of a component": _alone("lycoris_{flat}", "unet"),
    "bare": _alone("{dotted}"),
    "bare, of a component": _alone("{dotted}", "transformer"),
    "peft": _alone("base_model.model.{dotted}"),
    "kohya, unet": Grammar(spelling="lora_unet_{flat}", component="unet"),
    "kohya, transformer": Grammar(spelling="lora_unet_{flat}"),
    "kohya, two underscores": Grammar(spelling="lora_unet__{flat}"),
    "kohya, one text encoder": _encoder("lora_te_{flat}", 1),
    "kohya, first text encoder": _encoder("lora_te1_{flat}", 1),
    "kohya, second text encoder": _encoder("lora_te2_{flat}", 2),
    "kohya, third text encoder": _encoder("lora_te3_{flat}", 3),
    "onetrainer, old": Grammar(spelling="lora_transformer_{flat}"),
    "comfyui": Grammar(spelling="diffusion_model.{dotted}"),
    "comfyui, text encoder": _encoder("text_encoders.clip_g.transformer.{dotted}", 2),
    "diffusers, transformer": Grammar(spelling="transformer.{dotted}"),
    "diffusers, unet": Grammar(spelling="unet.{dotted}", component="unet"),
    "diffusers, text encoder": _encoder("text_encoder.{dotted}", 1),
    "diffusers, second text encoder": _encoder("text_encoder_2.{dotted}", 2),
}
