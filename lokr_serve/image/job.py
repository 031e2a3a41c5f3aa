"""Job: a request for images in the engine, with its mailbox and what it has taken so far."""

import time
from collections.abc import Sequence

from lokr_core import Apply, LokrError
from lokr_serve.errors import DeadlineError, DeviceMemoryError, GenerationFailedError
from lokr_serve.fair_queue import Share
from lokr_serve.image.gather import Member
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.mailbox import Mailbox
from lokr_serve.types import ApplyMode, ImageFinished, ImageTiming, ImageUsage


class Job:
    """A request for images in the engine."""

    def __init__(self, generation: ImageGeneration, mailbox: Mailbox) -> None:
        self.generation = generation
        self.mailbox = mailbox
        self.member = Member(owner=generation.mix)
        self.began_at: float | None = None  # time.monotonic, once it has left the queue
        self.denoised_at: float | None = None  # once its last step was done
        self.decoded_at: float | None = None  # once its images are pixels
        self.num_denoiser_rows = 0

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.generation.request.request_id

    @property
    def share(self) -> Share:
        """Whose share of the engine it counts against."""
        generation = self.generation
        return Share(
            priority=generation.request.priority, client=generation.client, mix=generation.mix
        )

    @property
    def cost(self) -> int:
        """The pixels that are denoised in all steps, its share of the queue."""
        plan = self.generation.plan
        return plan.width * plan.height * plan.num_run_steps * len(plan.seeds)

    @property
    def seeds(self) -> Sequence[int]:
        """The seed of each image."""
        return self.generation.plan.seeds

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self.generation.deadline <= time.monotonic()

    def begin(self) -> float:
        """Note that the request has left the queue, and return how long it was in it.

        Raises:
            DeadlineError: It was in it until its deadline.
        """
        self.began_at = time.monotonic()
        if self.is_late:
            raise DeadlineError("the deadline passed while the request waited for the engine")
        self.mailbox.admit()
        return self.began_at - self.generation.accepted_at

    def finished(self, index: int) -> ImageFinished:
        """Return the end of one of its images."""
        generation, accepted_at = self.generation, self.generation.accepted_at
        assert self.began_at is not None, "a request finishes after it has begun"
        assert self.denoised_at is not None, "and after its last step"
        assert self.decoded_at is not None, "and after its images were decoded"
        return ImageFinished(
            index=index,
            seed=self.seeds[index],
            mix_name=generation.mix.name,
            apply_mode=_MODES[generation.apply],
            usage=ImageUsage(
                num_steps=generation.plan.num_run_steps,
                num_denoiser_rows=self.num_denoiser_rows // len(self.seeds),
            ),
            timing=ImageTiming(
                queue_seconds=self.began_at - accepted_at,
                denoised_seconds=self.denoised_at - accepted_at,
                decoded_seconds=self.decoded_at - accepted_at,
                total_seconds=time.monotonic() - accepted_at,
            ),
        )

    def fault(self) -> LokrError:
        """Return the error of a request that cannot be computed."""
        return GenerationFailedError(self.request_id)

    def want_of_memory(self) -> LokrError:
        """Return the error of a request that the device has no memory for."""
        return DeviceMemoryError(
            f"request {self.request_id!r}",
            remedy="send it later, ask for smaller or fewer images, or start the server with a "
            "smaller image.max_requests",
        )


_MODES = {Apply.UNMERGED: ApplyMode.UNMERGED, Apply.MERGED: ApplyMode.MERGED}
