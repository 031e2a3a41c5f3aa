"""``lokr-serve generate``."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lokr_core import LokrError
from lokr_serve.cli.command import (
    INFERENCE_SERVER,
    JsonFlag,
    PriorityFlag,
    ServerFlag,
    TimeoutFlag,
)
from lokr_serve.cli.connecting import ClientCommand
from lokr_serve.cli.output import note, print_json
from lokr_serve.cli.weights import AdapterFlag, ModuleWeightFlag, parse_mix
from lokr_serve.errors import SettingsError
from lokr_serve.types import (
    ApplyMode,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Finished,
    GenerationRequest,
    Priority,
    Prompt,
    SamplingParams,
    Started,
    TextPrompt,
)

DEFAULTS = SamplingParams()

Event = Started | Chunk | Finished


@dataclass(frozen=True, kw_only=True)
class Generate(ClientCommand):
    """Generate text with the base model or a mix of adapters, and print it as it comes."""

    adapter: AdapterFlag = None
    module_weight: ModuleWeightFlag = None
    prompt: Annotated[str | None, Option(help="What to continue.")] = None
    prompt_file: Annotated[
        Path | None, Option(metavar="FILE", help="Read it from a file; - is standard input.")
    ] = None
    chat: Annotated[bool, Option("--chat", help="Ask it as a user in a chat.")] = False
    apply: Annotated[ApplyMode, Option(help="How the mix is applied.")] = ApplyMode.AUTO
    max_tokens: Annotated[int, Option(help="The most tokens.")] = DEFAULTS.max_tokens
    temperature: Annotated[float, Option(help="0 is greedy.")] = DEFAULTS.temperature
    top_p: Annotated[float, Option(help="Probability to draw from.")] = DEFAULTS.top_p
    seed: Annotated[int | None, Option(help="Makes the draws repeatable.")] = None
    stop: Annotated[
        list[str] | None, Option(metavar="TEXT", help="Ends a sequence; repeatable.")
    ] = None
    n: Annotated[int, Option("--n", help="How many sequences.")] = DEFAULTS.n
    priority: PriorityFlag = "normal"
    server: ServerFlag = INFERENCE_SERVER
    timeout: TimeoutFlag = 300.0
    as_json: JsonFlag = False

    def run(self) -> None:
        """Send the request and print what comes."""
        request = GenerationRequest(
            prompt=self._prompt(),
            adapters=parse_mix(self.adapter, self.module_weight),
            sampling=SamplingParams(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed,
                stop=tuple(self.stop or ()),
                n=self.n,
            ),
            apply_mode=self.apply,
            priority=Priority[self.priority.upper()],
        )
        with (
            self.connect(self.server, self.timeout) as client,
            closing(client.generate(request)) as events,
        ):
            if self.as_json:
                _print_events(events)
            else:
                print_text(events, n=self.n)

    def _prompt(self) -> Prompt:
        text = self._prompt_text()
        if self.chat:
            return ChatPrompt(messages=(ChatMessage(role="user", content=text),))
        return TextPrompt(text=text)

    def _prompt_text(self) -> str:
        match self.prompt, self.prompt_file:
            case str() as text, None:
                return text
            case None, Path() as file:
                return _read(file)
            case _:
                raise SettingsError("give one of --prompt and --prompt-file")


def _read(path: Path) -> str:
    if str(path) == "-":
        return sys.stdin.read()
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--prompt-file: {path} cannot be read: {error}") from error


def _print_events(events: Iterable[Event]) -> None:
    for event in events:
        name = type(event).__name__.lower()
        print_json({"event": name, **asdict(event)}, indent=None)


def print_text(events: Iterable[Event], *, n: int) -> None:
    """Print one sequence as it comes, or several one after the other."""
    texts: dict[int, list[str]] = defaultdict(list)
    for event in _ending_its_line(events) if n == 1 else events:
        match event:
            case Started():
                note(_describe_started(event))
            case Chunk() if n == 1:
                typer.echo(event.text, nl=False)
            case Chunk():
                texts[event.index].append(event.text)
            case Finished():
                if n > 1:
                    typer.echo(f"[{event.index}] {''.join(texts.pop(event.index, ()))}", nl=False)
                typer.echo()
                note(_describe_finished(event))


def _ending_its_line(events: Iterable[Event]) -> Iterator[Event]:
    """Yield events; text that an error cuts off ends its line before the error is told."""
    has_text = False
    try:
        for event in events:
            has_text = isinstance(event, Chunk)
            yield event
    except LokrError:
        if has_text:
            typer.echo()
        raise


def _describe_started(started: Started) -> str:
    name = started.mix_name or "base model"
    return f"{name} ({started.apply_mode.value}), seed {started.seed}"


def _describe_finished(finished: Finished) -> str:
    tokens, seconds = finished.usage.completion_tokens, finished.timing.total_seconds
    return f"{tokens} tokens in {seconds:.2f} s, ended by {finished.reason.value}"
