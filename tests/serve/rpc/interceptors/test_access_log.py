"""The log of calls: which of them have a line, and what it says and what it must not say."""

import io
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lokr_serve.client import Client, ClientError, Credentials
from lokr_serve.logs import log_handler
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    ChatMessage,
    ChatPrompt,
    Chunk,
    GenerationRequest,
    ImageParams,
    ImageRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
)
from tests.serve.running import Connection, connected, running_server, tiny_settings
from tests.serve.security.pki import token_of, write_clients

SECRET = "planted secret"
WRONG_TOKEN = "a-token-that-opens-nothing"
PROMPT = TextPrompt(text=SECRET)
SHORT = SamplingParams(max_tokens=3, seed=1, ignore_eos=True)
POET = AdapterWeight(adapter_id="poet", weight=0.5)


class Log:
    """The lines of a server in this process."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self, logger: str = "lokr_serve.access") -> list[dict[str, object]]:
        """Return the lines of one logger."""
        lines: list[dict[str, object]] = list(map(json.loads, self.stream.getvalue().splitlines()))
        return [line for line in lines if line["logger"] == logger]

    def line_of(self, request_id: str) -> dict[str, object]:
        """Return the one line about a call."""
        (line,) = (line for line in self.lines() if line["request_id"] == request_id)
        return line


@contextmanager
def everything_logged(level: int = logging.INFO) -> Iterator[Log]:
    """Collect the lines of every logger, from a level on, until the block ends."""
    log, root = Log(), logging.getLogger()
    handler = log_handler(log.stream)
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield log
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def request(
    request_id: str,
    *adapters: AdapterWeight,
    prompt: Prompt = PROMPT,
    sampling: SamplingParams = SHORT,
) -> GenerationRequest:
    """Return a request whose prompt nobody may tell."""
    return GenerationRequest(
        request_id=request_id,
        prompt=prompt,
        adapters=adapters,
        sampling=sampling,
        apply_mode=ApplyMode.UNMERGED,
    )


@pytest.fixture(scope="module")
def logged(
    model_folder: Path, adapter_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connection]:
    """A server that writes a line of each call, and knows one client."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        server={"access_log": "all"},
        security={
            "clients": write_clients(
                tmp_path_factory.mktemp("clients") / "clients.toml",
                **{"team-a": 'permissions = ["infer", "admin"]'},
            )
        },
    )
    with running_server(settings) as server:
        addresses = server.ready.result()
        credentials = Credentials(token=token_of("team-a"))
        with (
            connected(addresses) as bare,
            Client(addresses.listen, credentials=credentials) as client,
        ):
            yield Connection(
                addresses=addresses,
                client=client,
                admin=bare.admin,
                text=bare.text,
                images=bare.images,
                adapters=bare.adapters,
            )


def test_a_call_has_one_line_with_what_an_operator_asks_for(logged: Connection) -> None:
    """Who called what, how it ended, how long it took, and what it used."""
    with everything_logged() as log:
        logged.client.generate_once(request("r-told", POET))
    line = log.line_of("r-told")

    assert 0 < float(str(line.pop("seconds"))) < 60
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "lokr_serve.access",
        "message": "call ended",
        "request_id": "r-told",
        "client": "team-a",
        "mix": "poet*0.5",
        "method": "lokr_serve.v1.TextService/GenerateOnce",
        "code": "OK",
        "apply_mode": "unmerged",
        "prompt_tokens": line["prompt_tokens"],
        "cached_prompt_tokens": 0,
        "completion_tokens": 3,
    }


def test_lines_of_calls_at_the_same_time_are_not_mixed_up(logged: Connection) -> None:
    """They are served on one thread, in turns."""
    names = [f"r-{adapter}-{index}" for index in range(6) for adapter in ("poet", "pirate")]

    def ask(name: str) -> None:
        logged.client.generate_once(request(name, AdapterWeight(adapter_id=name.split("-")[1])))

    with everything_logged() as log:
        threads = [threading.Thread(target=ask, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert {name: log.line_of(name)["mix"] for name in names} == {
        name: name.split("-")[1] for name in names
    }


@pytest.mark.parametrize(
    ("wanted", "told"), [("off", []), ("failures", ["r-bad"]), ("all", ["r-good", "r-bad"])]
)
def test_the_operator_chooses_which_calls_have_a_line(
    model_folder: Path, wanted: str, told: Sequence[str]
) -> None:
    """A line of each call is much where there are thousands in a second."""
    settings = tiny_settings(model_folder, server={"access_log": wanted})
    with (
        running_server(settings) as server,
        connected(server.ready.result()) as connection,
        everything_logged() as log,
    ):
        connection.client.generate_once(request("r-good"))
        connection.client.health()
        with pytest.raises(ClientError):
            connection.client.generate_once(request("r-bad", POET))

    assert [line["request_id"] for line in log.lines()] == told
    assert "r-bad" not in told or log.line_of("r-bad")["reason"] == "ADAPTER_NOT_FOUND"


def test_no_line_of_a_busy_server_has_a_prompt_an_answer_or_a_token(
    logged: Connection, shared_image_server: Connection
) -> None:
    """Logs are kept, copied and read by many; what users write is theirs."""
    with everything_logged(logging.DEBUG) as log:
        answers = ask_all(logged, shared_image_server)
        logging.getLogger("lokr_serve").debug("the end")
    text = log.stream.getvalue()

    assert "the end" in text
    assert len(log.lines()) >= 8
    assert SECRET not in text
    assert token_of("team-a") not in text
    assert WRONG_TOKEN not in text
    assert not [answer for answer in answers if len(answer) > 8 and answer in text]


def ask_all(server: Connection, image_server: Connection) -> list[str]:
    """Make calls of many kinds, most of which fail, and return what was answered."""
    chat = ChatPrompt(messages=(ChatMessage(role=SECRET, content=SECRET),))
    asked = [
        request("s-1", POET),
        request("s-2", AdapterWeight(adapter_id="nobody")),
        request("s-3", prompt=chat),
        request("s-4", prompt=TextPrompt(text=SECRET * 5000)),
        request("s-5", sampling=SamplingParams(stop=(SECRET,), max_tokens=3)),
        request("s-6", AdapterWeight(adapter_id="poet", module_weights=((SECRET, 1.0),))),
    ]
    answers = [answer for one in asked if (answer := answer_of(server.client, one))]
    events = server.client.generate(
        request("s-7", sampling=SamplingParams(max_tokens=4000, ignore_eos=True))
    )
    answers.append(next(event for event in events if isinstance(event, Chunk)).text)
    events.close()
    with pytest.raises(ClientError):  # without its token, and with a wrong one
        server.admin.get_adapter("poet")
    with (
        Client(server.addresses.listen, credentials=Credentials(token=WRONG_TOKEN)) as stranger,
        pytest.raises(ClientError),
    ):
        stranger.generate_once(request("s-8"))
    for size in (16, 17):
        draw(image_server, size)
    return answers


def answer_of(client: Client, asked: GenerationRequest) -> str:
    """Return what a request is answered, which may be an error."""
    try:
        return client.generate_once(asked).text
    except ClientError:
        return ""


def draw(server: Connection, size: int) -> None:
    """Ask for an image; sizes that the model does not have are refused."""
    params = ImageParams(width=size, height=size, num_steps=1)
    wanted = ImageRequest(prompt=SECRET, negative_prompt=SECRET, params=params)
    try:
        server.client.generate_image_once(wanted)
    except ClientError:
        assert size % 16
