"""ImagePlan: one request as its pipeline will run it, with every default filled in."""

from dataclasses import dataclass

from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImagePlan:
    """One request as its pipeline will run it; it was checked against the model."""

    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    num_steps: int  # asked of the scheduler
    num_run_steps: int  # of those, what the strength leaves to run
    guidance_scale: float | None  # None where the model has none
    true_cfg_scale: float | None  # likewise
    seeds: tuple[int, ...]  # one for each image
    scheduler: str  # a class of diffusers
    init_image: Image | None
    init_digest: str | None  # SHA-256 of the file that it came in
    strength: float | None
    max_rows: int  # of the largest call of the denoiser

    @property
    def num_image_bytes(self) -> int:
        """Bytes of the pixels of its init image."""
        image = self.init_image
        return 0 if image is None else image.width * image.height * len(image.getbands())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineResult:
    """What a pipeline has made, in the order of the plan's seeds."""

    images: tuple[Image, ...]
    latents: Tensor  # [num_images, ...] after the last step, in the pipeline's own shape
    are_flagged: tuple[bool, ...]  # by the model's own safety checker
