"""Requests for images that cannot be served, each told by its field, beside others that are."""

import grpc
import pytest

from lokr_serve.client import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
)
from lokr_serve.client.errors import client_error
from lokr_serve.types import (
    AdapterWeight,
    GeneratedImage,
    GenerationRequest,
    ImageRequest,
    LoadSpec,
    TextPrompt,
)
from lokr_serve.v1.common_pb2 import AdapterWeight as WeightMessage
from lokr_serve.v1.images_pb2 import GenerateImageRequest, ImageParams, InitImage
from tests.serve.rpc.test_generate_image import PARAMS, image_of, init_image, of_kind, request
from tests.serve.running import Connection


def params(**values: object) -> GenerateImageRequest:
    """Return a request with these parameters."""
    return GenerateImageRequest(prompt="x", params=ImageParams(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (params(width=17, height=16), "params.width"),
        (params(width=16, height=17), "params.height"),
        (params(width=8192, height=8192), "params.width"),
        (params(num_steps=0), "params.num_steps"),
        (params(num_steps=1001), "params.num_steps"),
        (params(scheduler="NoScheduler"), "params.scheduler"),
        (params(true_cfg_scale=4), "params.true_cfg_scale"),
        (params(num_images=65), "params.num_images"),
        (params(init_image=InitImage()), "params.init_image.data"),
        (params(init_image=InitImage(data=b"no image")), "params.init_image.data"),
        (params(init_image=InitImage(data=init_image()[:-30])), "params.init_image.data"),
        (params(init_image=InitImage(data=init_image(), strength=2)), "params.init_image.strength"),
        (GenerateImageRequest(prompt="cat " * 500), "prompt"),
        (
            GenerateImageRequest(
                prompt="x",
                adapters=[WeightMessage(adapter_id="ink", module_weights={"vae.*": 1})],
            ),
            "adapters[0].module_weights",
        ),
    ],
)
def test_bad_input_is_told_by_its_field(
    shared_image_server: Connection, message: GenerateImageRequest, field: str
) -> None:
    """A caller sees at once what to change."""
    with pytest.raises(grpc.RpcError) as caught:
        list(shared_image_server.images.GenerateImage(message, timeout=30))

    error = client_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field


def test_other_images_go_on_beside_bad_input(shared_image_server: Connection) -> None:
    """One user's mistake is not another's."""
    client = shared_image_server.client
    expected = image_of(client, request()).data
    stream = client.generate_image(request())
    next(stream)
    with pytest.raises(grpc.RpcError):
        list(shared_image_server.images.GenerateImage(params(num_steps=0), timeout=30))
    images = of_kind(GeneratedImage, stream)

    assert [image.data for image in images] == [expected]


def test_an_adapter_of_another_family_is_refused_by_name(shared_image_server: Connection) -> None:
    """Its file is right, and for another model."""
    foreign = AdapterWeight(adapter_id="foreign")

    spec = LoadSpec(adapter_id="new", source="foreign.safetensors")

    with pytest.raises(FailedPreconditionError, match="lora_unet") as used:
        shared_image_server.client.generate_image_once(request(foreign))
    with pytest.raises(FailedPreconditionError, match="lora_unet") as loaded:
        shared_image_server.admin.load_adapter(spec)
    assert used.value.reason == "ADAPTER_LOAD_FAILED"
    assert loaded.value.reason == "UNMATCHED_KEYS"


def test_an_adapter_that_is_not_there_is_not_found(shared_image_server: Connection) -> None:
    """The same error as for text."""
    nobody = AdapterWeight(adapter_id="nobody")

    with pytest.raises(NotFoundError):
        shared_image_server.client.generate_image_once(request(nobody))


def test_a_server_of_images_has_no_text(shared_image_server: Connection) -> None:
    """The error says what to call instead."""
    with pytest.raises(UnimplementedError, match=r"lokr_serve\.v1\.ImageService") as caught:
        shared_image_server.client.generate_once(GenerationRequest(prompt=TextPrompt(text="x")))
    assert caught.value.reason == "NOT_SERVED"


def test_a_server_of_text_has_no_images(shared_server: Connection) -> None:
    """The error says what to call instead."""
    with pytest.raises(UnimplementedError, match=r"lokr_serve\.v1\.TextService") as caught:
        shared_server.client.generate_image_once(ImageRequest(prompt="x", params=PARAMS))
    assert caught.value.reason == "NOT_SERVED"
