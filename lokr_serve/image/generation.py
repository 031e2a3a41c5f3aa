"""ImageGeneration: a request for images as the engine takes it."""

import math
from dataclasses import dataclass

from lokr_core import AdapterMix, Apply
from lokr_serve.image.plan import ImagePlan
from lokr_serve.types import ImageRequest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageGeneration:
    """One request that was admitted; its mix is held by its caller until it has ended."""

    request: ImageRequest
    plan: ImagePlan
    mix: AdapterMix
    apply: Apply
    accepted_at: float  # of time.monotonic
    client: str = ""  # whose share of the engine it counts against; empty is nobody in particular
    deadline: float = math.inf  # of time.monotonic; one that still waits then never starts
