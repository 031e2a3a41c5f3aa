"""Stand-ins: they look like the module to a pipeline, and nothing reaches it but calls."""

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, Qwen3ForCausalLM

from lokr_serve.errors import ModelError
from lokr_serve.image.calls import Call
from lokr_serve.image.families import family_of
from lokr_serve.image.stand_ins import DenoiserStandIn, EncoderStandIn, StandIn, VaeStandIn
from tests.tiny.pipelines import make_pipeline

UNET_SIGNATURE = family_of("StableDiffusionPipeline").signature


def run_at_once(calls: Sequence[Call]) -> list[object]:
    """Run calls as the engine would, one by one."""
    return [call.function(**call.arguments) for call in calls]


@pytest.fixture(scope="module")
def parts() -> dict[str, nn.Module]:
    """The modules of a pipeline; no test changes them."""
    components = make_pipeline("stable-diffusion").components
    return {name: part for name, part in components.items() if isinstance(part, nn.Module)}


def unet_of(parts: dict[str, nn.Module]) -> tuple[UNet2DConditionModel, DenoiserStandIn]:
    """Return the denoiser and a stand-in."""
    unet = cast(UNet2DConditionModel, parts["unet"])
    return unet, DenoiserStandIn("unet", unet, run_at_once, signature=UNET_SIGNATURE)


def test_a_stand_in_has_what_pipelines_read(parts: dict[str, nn.Module]) -> None:
    """Sizes, dtype and device, and parameters; it is a module, or pipelines would not find it."""
    unet, stand_in = unet_of(parts)

    assert isinstance(stand_in, nn.Module)
    assert stand_in.config is unet.config
    assert (stand_in.dtype, stand_in.device) == (unet.dtype, unet.device)
    assert stand_in.conv_in.in_channels == unet.config["in_channels"]
    assert next(stand_in.parameters()) is next(unet.parameters())
    assert not stand_in.state_dict()


def test_what_is_done_to_a_stand_in_ends_with_it(parts: dict[str, nn.Module]) -> None:
    """Pipelines turn dtypes over and set attributes; others are using the module meanwhile."""
    unet, stand_in = unet_of(parts)
    needs_grad = [parameter.requires_grad for parameter in unet.parameters()]

    stand_in.to(torch.float64).half().train().requires_grad_(not needs_grad[0])
    stand_in.scale = torch.tensor(3.0)

    assert unet.dtype == torch.float32
    assert not unet.training
    assert [parameter.requires_grad for parameter in unet.parameters()] == needs_grad
    assert "scale" not in unet.__dict__


@pytest.mark.parametrize("method", ["enable_freeu", "set_attn_processor", "disable_freeu"])
def test_methods_that_change_a_module_cannot_be_called(
    method: str, parts: dict[str, nn.Module]
) -> None:
    """They would change it for every request; the message names the module."""
    _, stand_in = unet_of(parts)

    with pytest.raises(AttributeError, match=f"unet is shared by requests, so that its {method}"):
        getattr(stand_in, method)()


def test_an_attribute_that_the_module_lacks_is_lacking(parts: dict[str, nn.Module]) -> None:
    """Pipelines ask for hooks of offloading with hasattr."""
    _, stand_in = unet_of(parts)

    assert not hasattr(stand_in, "_hf_hook")


def test_a_denoisers_call_has_its_rows_and_joins(parts: dict[str, nn.Module]) -> None:
    """And its output is what the module returns."""
    unet = cast(UNet2DConditionModel, parts["unet"])
    seen: list[Call] = []

    def run(calls: Sequence[Call]) -> list[object]:
        seen.extend(calls)
        return run_at_once(calls)

    stand_in = DenoiserStandIn("unet", unet, run, signature=UNET_SIGNATURE)
    size = (2, unet.config["in_channels"], 8, 8)
    arguments = torch.randn(size), 5, torch.randn(2, 7, unet.config["cross_attention_dim"])

    found = stand_in(*arguments, return_dict=False)

    torch.testing.assert_close(found[0], unet(*arguments).sample)
    assert (seen[0].name, seen[0].num_rows) == ("unet", 2)
    assert seen[0].joining is not None


def test_a_cache_between_steps_is_refused(parts: dict[str, nn.Module]) -> None:
    """It would serve one request what it keeps of another; without one the context is empty."""
    _, stand_in = unet_of(parts)
    with stand_in.cache_context("cond"):
        pass

    class Cached(nn.Identity):
        is_cache_enabled = True

    stand_in = DenoiserStandIn("transformer", Cached(), run_at_once, signature=UNET_SIGNATURE)
    context = stand_in.cache_context("cond")

    with pytest.raises(ModelError, match="transformer keeps a cache"), context:
        pass


def test_a_text_encoder_gives_what_the_module_does(parts: dict[str, nn.Module]) -> None:
    """Its calls join, as prompts are padded to one length."""
    encoder = cast(CLIPTextModel, parts["text_encoder"])
    stand_in = EncoderStandIn("text_encoder", encoder, run_at_once)
    ids = torch.arange(4, 11)[None]

    torch.testing.assert_close(stand_in(ids, attention_mask=None)[0], encoder(ids)[0])


def test_a_language_model_keeps_no_cache_and_gives_no_logits() -> None:
    """Rows of a cache cannot be told apart, and logits of every token are large and unread."""
    model = make_pipeline("flux2-klein").components["text_encoder"]
    assert isinstance(model, Qwen3ForCausalLM)
    stand_in = EncoderStandIn("text_encoder", model, run_at_once)
    ids = torch.arange(4, 11)[None]

    with torch.no_grad():
        output = stand_in(input_ids=ids, output_hidden_states=True)
        wanted = model(input_ids=ids, output_hidden_states=True)

    assert output.past_key_values is None
    assert output.logits.shape[1] == 1
    torch.testing.assert_close(output.hidden_states, wanted.hidden_states)


def test_an_autoencoder_runs_in_its_own_dtype_and_alone(parts: dict[str, nn.Module]) -> None:
    """Pipelines in half precision hand it latents of theirs, as it may stay in float32."""
    vae = cast(AutoencoderKL, parts["vae"])
    seen: list[Call] = []

    def run(calls: Sequence[Call]) -> list[object]:
        seen.extend(calls)
        return run_at_once(calls)

    stand_in = VaeStandIn("vae", vae, run)
    latents = torch.randn(1, vae.config["latent_channels"], 4, 4, dtype=torch.float64)
    with torch.no_grad():
        (pixels,) = cast(tuple[torch.Tensor], stand_in.decode(latents, return_dict=False))
        stand_in.encode(pixels.half())

    torch.testing.assert_close(pixels, vae.decode(latents.float()).sample.detach())
    assert [call.name for call in seen] == ["vae.decode", "vae.encode"]
    assert [call.joining for call in seen] == [None, None]


def test_any_other_module_runs_alone() -> None:
    """Such as a safety checker, of whose rows nothing is known."""
    seen: list[Call] = []

    def run(calls: Sequence[Call]) -> list[object]:
        seen.extend(calls)
        return run_at_once(calls)

    stand_in = StandIn("safety_checker", nn.Identity(), run)
    found = stand_in(torch.ones(2))

    assert seen[0].joining is None
    torch.testing.assert_close(found, torch.ones(2))
