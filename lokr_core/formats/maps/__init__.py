"""Maps between the names of models' original code and those of diffusers, as data."""

from lokr_core.formats.maps import clip, flux, sd3, wan, z_image
from lokr_core.formats.maps.rows import NameMap, NamePair, Row, Shares
from lokr_core.formats.maps.unet import unet_map

MAPS: tuple[NameMap, ...] = (
    clip.TEXT,
    clip.VISION,
    sd3.SD3,
    flux.FLUX1,
    flux.FLUX2,
    flux.CHROMA,
    wan.WAN,
    z_image.Z_IMAGE,
)

__all__ = ["MAPS", "NameMap", "NamePair", "Row", "Shares", "unet_map"]
