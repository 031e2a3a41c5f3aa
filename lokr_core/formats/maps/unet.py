"""The UNets of Stable Diffusion 1.5, 2 and XL: block numbers count the layers of all stages."""

from collections.abc import Collection, Iterator
from itertools import count

from lokr_core.formats.maps.rows import NameMap, NamePair, Row, rows

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_map(names: Collection[str]) -> NameMap | None:
    """Return the map of a UNet with these names of either kind; None if it is no UNet."""
    if "down_blocks.0.resnets.0.conv1" in names:
        layers = next(j for j in count() if f"down_blocks.0.resnets.{j}.conv1" not in names)
        stages = next(i for i in count() if f"down_blocks.{i}.resnets.0.conv1" not in names)
        return _map(stages, layers)
    if "input_blocks.1.0.in_layers.2" in names:
        blocks = next(k for k in count(1) if f"input_blocks.{k}.0.in_layers.2" not in names)
        inputs = {name.split(".")[1] for name in names if name.startswith("input_blocks.")}
        return _map(len(inputs) // blocks, blocks - 1)
    return None


def _map(stages: int, layers: int) -> NameMap:
    return NameMap(
        family="Stable Diffusion",
        original_marks=("input_blocks.0.0", "middle_block.0.in_layers.2"),
        diffusers_marks=("conv_in", "mid_block.resnets.0.conv1"),
        rows=(
            *rows(_ENDS),
            *_resnet("middle_block.0", "mid_block.resnets.0"),
            *_attention("middle_block.1", "mid_block.attentions.0"),
            *_resnet("middle_block.2", "mid_block.resnets.1"),
            *_down(stages, layers),
            *_up(stages, layers + 1),
        ),
    )


def _resnet(original: str, diffusers: str) -> tuple[Row, ...]:
    return rows(_RESNET, original=f"{original}.", diffusers=f"{diffusers}.")


def _attention(original: str, diffusers: str) -> Iterator[Row]:
    yield Row(
        original=f"{original}.{{rest}}",
        diffusers=(f"{diffusers}.{{rest}}",),
        when=NamePair(original=f"{original}.proj_in", diffusers=f"{diffusers}.proj_in"),
    )


def _down(stages: int, layers: int) -> Iterator[Row]:
    for stage in range(stages):
        first = 1 + stage * (layers + 1)
        for layer in range(layers):
            original = f"input_blocks.{first + layer}"
            yield from _resnet(f"{original}.0", f"down_blocks.{stage}.resnets.{layer}")
            yield from _attention(f"{original}.1", f"down_blocks.{stage}.attentions.{layer}")
        downsampler = f"down_blocks.{stage}.downsamplers.0.conv"
        yield from rows({f"input_blocks.{first + layers}.0.op": downsampler})


def _up(stages: int, layers: int) -> Iterator[Row]:
    for stage in range(stages):
        first = stage * layers
        for layer in range(layers):
            original = f"output_blocks.{first + layer}"
            yield from _resnet(f"{original}.0", f"up_blocks.{stage}.resnets.{layer}")
            yield from _attention(f"{original}.1", f"up_blocks.{stage}.attentions.{layer}")
        original = f"output_blocks.{first + layers - 1}"
        upsampler = (f"up_blocks.{stage}.upsamplers.0.conv",)
        attention = NamePair(
            original=f"{original}.1.proj_in",
            diffusers=f"up_blocks.{stage}.attentions.{layers - 1}.proj_in",
        )
        yield Row(original=f"{original}.2.conv", diffusers=upsampler, when=attention)
        yield Row(original=f"{original}.1.conv", diffusers=upsampler, unless=attention)
