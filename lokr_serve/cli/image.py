"""``lokr-serve image``."""

import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lokr_serve.cli.command import (
    INFERENCE_SERVER,
    JsonFlag,
    PriorityFlag,
    ServerFlag,
    TimeoutFlag,
)
from lokr_serve.cli.connecting import ClientCommand
from lokr_serve.cli.image_files import ImageFiles, choose_format, choose_pattern, image_files
from lokr_serve.cli.output import note, print_json, step_progress
from lokr_serve.cli.weights import AdapterFlag, ModuleWeightFlag, parse_mix, parse_schedule
from lokr_serve.errors import SettingsError
from lokr_serve.types import (
    ApplyMode,
    GeneratedImage,
    ImageEvent,
    ImageFinished,
    ImageFormat,
    ImageOutput,
    ImageParams,
    ImagePreview,
    ImageProgress,
    ImageRequest,
    ImageStarted,
    InitImage,
    Priority,
    image_seeds,
)

Event = ImageStarted | ImageEvent


@dataclass(frozen=True, kw_only=True)
class MakeImage(ClientCommand):
    """Make images with the base model or a mix of adapters, and print where they are.

    What is not given takes the default of the model's own pipeline.
    """

    prompt: Annotated[str, Option(help="What to show.")]
    negative_prompt: Annotated[str | None, Option(help="What not to show.")] = None
    adapter: AdapterFlag = None
    module_weight: ModuleWeightFlag = None
    schedule: Annotated[
        list[str] | None,
        Option(
            metavar="ID@STEP=FACTOR,...",
            help="What an adapter's weights are multiplied by from a step on; repeatable.",
        ),
    ] = None
    apply: Annotated[ApplyMode, Option(help="How the mix is applied.")] = ApplyMode.AUTO
    size: Annotated[str | None, Option(metavar="WIDTHxHEIGHT", help="In pixels.")] = None
    steps: Annotated[int | None, Option(help="Steps of the scheduler.")] = None
    guidance: Annotated[float | None, Option(help="How strongly to follow the prompt.")] = None
    true_cfg: Annotated[
        float | None, Option(help="The same, of models that have it beside a distilled one.")
    ] = None
    seed: Annotated[
        int | None, Option(help="Makes the draws repeatable; one more for each further image.")
    ] = None
    scheduler: Annotated[str, Option(help="Such as EulerDiscreteScheduler.")] = ""
    num_images: Annotated[int, Option(help="How many images.")] = 1
    init_image: Annotated[
        Path | None, Option(metavar="FILE", help="PNG, JPEG or WebP to start from.")
    ] = None
    strength: Annotated[
        float | None, Option(help="Share of the steps that change it, up to 1.")
    ] = None
    output: Annotated[
        Path | None,
        Option(metavar="PATH", help="May hold {index} and {seed}; image-{seed}.png if not given."),
    ] = None
    force: Annotated[bool, Option("--force", help="Overwrite files.")] = False
    image_format: Annotated[
        ImageFormat | None, Option("--format", help="By the end of PATH if not given.")
    ] = None
    quality: Annotated[int | None, Option(help="Of WebP and JPEG, 1 to 100.")] = None
    latents: Annotated[
        bool, Option("--latents", help="Write the final latents too, as safetensors.")
    ] = False
    metadata: Annotated[
        bool, Option("--metadata", help="Write into each image how it was made.")
    ] = False
    preview_every: Annotated[
        int, Option(metavar="STEPS", help="Show a small preview beside PATH meanwhile; 0 is never.")
    ] = 0
    priority: PriorityFlag = "normal"
    server: ServerFlag = INFERENCE_SERVER
    timeout: TimeoutFlag = 600.0
    as_json: JsonFlag = False

    def run(self) -> None:
        """Send the request, and write what comes."""
        request = self._request()
        files = self._files(request)
        with (
            _previews(files, request.output),
            self.connect(self.server, self.timeout) as client,
            closing(client.generate_image(request)) as events,
        ):
            if self.as_json:
                _print_events(events, files)
            else:
                _print_paths(events, files)

    def _request(self) -> ImageRequest:
        return ImageRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            adapters=parse_mix(self.adapter, self.module_weight),
            schedules=tuple(map(parse_schedule, self.schedule or ())),
            params=self._params(),
            output=ImageOutput(
                format=choose_format(self.image_format, self.output),
                quality=self.quality,
                latents=self.latents,
                metadata=self.metadata,
                preview_interval=self.preview_every,
            ),
            apply_mode=self.apply,
            priority=Priority[self.priority.upper()],
        )

    def _params(self) -> ImageParams:
        width, height = _parse_size(self.size)
        return ImageParams(
            width=width,
            height=height,
            num_steps=self.steps,
            guidance_scale=self.guidance,
            true_cfg_scale=self.true_cfg,
            # Drawn here, as files may be named by it.
            seed=secrets.randbits(64) if self.seed is None else self.seed,
            scheduler=self.scheduler,
            num_images=self.num_images,
            init_image=self._init_image(),
        )

    def _init_image(self) -> InitImage | None:
        if self.init_image is None:
            if self.strength is not None:
                raise SettingsError("--strength goes with --init-image")
            return None
        try:
            data = self.init_image.read_bytes()
        except OSError as error:
            raise SettingsError(
                f"--init-image: {self.init_image} cannot be read: {error}"
            ) from error
        return InitImage(data=data, strength=self.strength)

    def _files(self, request: ImageRequest) -> ImageFiles:
        params, output = request.params, request.output
        assert params.seed is not None
        seeds = image_seeds(params.seed, params.num_images)
        pattern = choose_pattern(self.output, output.format)
        files = image_files(pattern, seeds, may_overwrite=self.force)
        files.require_free(output)
        return files


@contextmanager
def _previews(files: ImageFiles, output: ImageOutput) -> Iterator[None]:
    """Let previews lie beside the images while these are made, however that ends."""
    try:
        yield
    finally:
        if output.preview_interval:
            files.remove_previews()


def _parse_size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,10})x(\d{1,10})", text, re.ASCII)
    if match is None:
        raise SettingsError(f"--size: {text!r} is not WIDTHxHEIGHT, such as 768x512")
    return int(match[1]), int(match[2])


def _print_events(events: Iterable[Event], files: ImageFiles) -> None:
    """Print one line of JSON for each event; bytes go into files, which it names."""
    for event in events:
        match event:
            case GeneratedImage():
                facts = asdict(event) | {"paths": files.write_image(event)}
                name = "image"
            case ImagePreview():
                facts = asdict(event) | {"path": files.write_preview(event)}
                name = "preview"
            case _:
                facts = asdict(event)
                name = type(event).__name__.removeprefix("Image").lower()
        plain = {key: value for key, value in facts.items() if key not in ("data", "latents")}
        print_json({"event": name, **plain}, indent=None)


def _print_paths(events: Iterable[Event], files: ImageFiles) -> None:
    """Print where each file is, and show a person how far the images are."""
    with step_progress() as show_step:
        for event in events:
            match event:
                case ImageStarted():
                    note(_describe_started(event))
                case ImageProgress():
                    show_step(event.step, event.num_steps)
                case ImagePreview():
                    files.write_preview(event)
                case GeneratedImage():
                    for path in files.write_image(event):
                        typer.echo(path)
                    if event.is_flagged:
                        typer.echo("the model's safety checker has blackened it", err=True)
                case ImageFinished():
                    note(f"{event.usage.num_steps} steps in {event.timing.total_seconds:.2f} s")


def _describe_started(started: ImageStarted) -> str:
    name = started.mix_name or "base model"
    return (
        f"{name} ({started.apply_mode.value}), {started.width}x{started.height}, "
        f"{started.scheduler}, seed {started.seed}"
    )
