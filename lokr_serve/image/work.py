"""Work: what the thread of a request does, from its prompt to its encoded images."""

import time
from collections.abc import Mapping, Sequence

from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from lokr_core import Apply
from lokr_serve.errors import NotFiniteError
from lokr_serve.image.calls import Call
from lokr_serve.image.encode import encode_image, encode_latents, encode_preview
from lokr_serve.image.gather import Gathering
from lokr_serve.image.job import Job
from lokr_serve.image.load import LoadedPipeline
from lokr_serve.image.metadata import image_metadata
from lokr_serve.image.pipelines import PipelineFactory, PipelineRun, StepDone
from lokr_serve.image.plan import PipelineResult
from lokr_serve.image.previews import preview_images
from lokr_serve.image.schedule import ScheduledMix
from lokr_serve.image.stand_ins import DenoiserStandIn, EncoderStandIn, StandIn, VaeStandIn
from lokr_serve.metrics import Metrics
from lokr_serve.types import GeneratedImage, ImagePreview, ImageProgress


class Work:
    """The work of one request, on its own thread."""

    def __init__(
        self,
        job: Job,
        *,
        gathering: Gathering,
        loaded: LoadedPipeline,
        factory: PipelineFactory,
        metrics: Metrics,
    ) -> None:
        self._job = job
        self._gathering = gathering
        self._loaded = loaded
        self._metrics = metrics
        generation = job.generation
        self._scheduled = ScheduledMix(generation.mix, generation.request.schedules)
        self._stand_ins = self._build_stand_ins()
        self._run: PipelineRun = factory.build(generation.plan, self._stand_ins)

    def do(self) -> None:
        """Make the request's images and post them.

        Raises:
            Exception: What ended the request before it had finished.
        """
        job = self._job
        with self._gathering.taking_part(job.member):
            result = self._run(self._on_step)
            job.decoded_at = time.monotonic()
            with self._gathering.aside(job.member):
                for index in range(len(job.seeds)):
                    self._gathering.check(job.member)
                    job.mailbox.post(self._encode(result, index))
                    job.mailbox.post(job.finished(index))
                    self._metrics.images.inc()

    def _build_stand_ins(self) -> Mapping[str, nn.Module]:
        """Return what the pipeline is to see in place of each shared module."""
        components = self._loaded.pipeline.components
        modules = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
        return {name: self._stand_in(name, module) for name, module in modules.items()}

    def _stand_in(self, name: str, module: nn.Module) -> StandIn:
        family = self._loaded.family
        if name == family.denoiser:
            return DenoiserStandIn(name, module, self._denoise, signature=family.signature)
        if name in {encoder.component for encoder in family.text_encoders}:
            return EncoderStandIn(name, module, self._call)
        if name == "vae":
            return VaeStandIn(name, module, self._call_vae)
        return StandIn(name, module, self._call)

    def _denoise(self, calls: Sequence[Call]) -> list[object]:
        """Run the denoiser with the mix of the scheduler step that runs now."""
        self._job.num_denoiser_rows += sum(call.num_rows for call in calls)
        mix = self._scheduled.at(self._run.step)
        apply = Apply.UNMERGED if self._scheduled.is_scheduled else self._job.generation.apply
        return self._gathering.run(self._job.member, calls, mix, apply)

    def _call(self, calls: Sequence[Call]) -> list[object]:
        generation = self._job.generation
        return self._gathering.run(self._job.member, calls, generation.mix, generation.apply)

    def _call_vae(self, calls: Sequence[Call]) -> list[object]:
        """Run the VAE; pixels that are none would else be drawn as black ones."""
        outputs = self._call(calls)
        for output in outputs:
            first = output[0] if isinstance(output, (tuple, BaseOutput)) else None
            if isinstance(first, Tensor) and not first.isfinite().all():
                raise NotFiniteError(self._job.request_id, "decoded pixels")
        return outputs

    def _on_step(self, done: StepDone) -> None:
        job = self._job
        self._gathering.check(job.member)
        self._metrics.denoising_steps.inc(len(job.seeds))
        job.mailbox.post(ImageProgress(step=done.step, num_steps=done.num_steps))
        if done.step == done.num_steps:
            job.denoised_at = time.monotonic()
            self._require_finite(done)
            self._gathering.step_aside(job.member)  # what is left joins nobody
            return
        interval = job.generation.request.output.preview_interval
        if interval and done.step % interval == 0:
            self._require_finite(done)
            with self._gathering.aside(job.member):
                self._preview(done)

    def _require_finite(self, done: StepDone) -> None:
        """Check latents that are about to be decoded; at other steps it would stall a device."""
        if not done.latents.isfinite().all():
            raise NotFiniteError(self._job.request_id, f"latents after step {done.step}")

    def _preview(self, done: StepDone) -> None:
        plan, vae = self._job.generation.plan, self._stand_ins["vae"]
        images = preview_images(self._run.pipeline, plan, done.latents, vae)
        for index, image in enumerate(images):
            preview = ImagePreview(
                index=index,
                step=done.step,
                width=image.width,
                height=image.height,
                data=encode_preview(image),
            )
            self._job.mailbox.post(preview)

    def _encode(self, result: PipelineResult, index: int) -> GeneratedImage:
        generation, image = self._job.generation, result.images[index]
        output = generation.request.output
        metadata = image_metadata(generation, index, model=self._loaded.name)
        return GeneratedImage(
            index=index,
            seed=self._job.seeds[index],
            format=output.format,
            width=image.width,
            height=image.height,
            data=encode_image(image, output, metadata),
            latents=encode_latents(result.latents[index : index + 1]) if output.latents else None,
            is_flagged=result.are_flagged[index],
        )
