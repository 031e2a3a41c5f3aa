"""The untrained parts of a small Stable Diffusion XL: stock classes, small sizes."""

import json

from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from examples.demo.images.autoencoder import transparent_autoencoder
from examples.demo.images.pictures import SIZE
from examples.demo.images.scenes import COLOURS, PLACES, Thing

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
MAX_TOKENS = 16  # of a prompt
TEXT_WIDTH = 64
TIME_ID_WIDTH = 8
NUM_TIME_IDS = 6
# The usual deviation, 0.02, would leave the words all but equal for hundreds of steps.
WORD_DEVIATION = 0.5


def untrained_pipeline() -> StableDiffusionXLPipeline:
    """Return a pipeline that knows words, but nothing of what they mean."""
    tokenizer = _tokenizer()
    config = _text_config(tokenizer)
    text_encoders = CLIPTextModel(config), CLIPTextModelWithProjection(config)
    for encoder in text_encoders:
        words = encoder.get_input_embeddings()
        assert isinstance(words, nn.Embedding)
        nn.init.normal_(words.weight, std=WORD_DEVIATION)
    return StableDiffusionXLPipeline(
        vae=transparent_autoencoder(SIZE),
        text_encoder=text_encoders[0],
        text_encoder_2=text_encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(),
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=False,
    )


def _tokenizer() -> CLIPTokenizer:
    colours, things = list(COLOURS), [thing.value for thing in Thing]
    words = ["a", *colours, *things, *(place.phrase for place in PLACES)]
    trained = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix=WORD_END))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    trained.train_from_iterator((word for line in words for word in line.split()), trainer)
    bpe = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in bpe["merges"]]
    return CLIPTokenizer(
        vocab=bpe["vocab"],
        merges=merges,  # type: ignore[arg-type]  # it says strings, and wants pairs
        model_max_length=MAX_TOKENS,
    )


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=TEXT_WIDTH + NUM_TIME_IDS * TIME_ID_WIDTH,
    )


def _scheduler() -> DDIMScheduler:
    # What is predicted is the picture, not the noise in it: that is learnt within a minute.
    return DDIMScheduler(
        prediction_type="sample",
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
