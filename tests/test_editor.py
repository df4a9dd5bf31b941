"""Latent editors: against diffusers' own pipeline, against their formulas, and from disk."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.adapting import generators
from tests.editing import saved_pipeline, tiny_editor, tiny_unet
from tests.scripts import run_script
from undegrade.image_adapt.decorruptor import Decorruptor, DecorruptorOptions
from undegrade.models.diffusion.editor import NULL, TEXT, check_weights, edit, image_weights, scale_embedding
from undegrade.models.diffusion.editor_loading import (
    describe_editor,
    editor_digest,
    editor_folder,
    editor_from_description,
    editor_of_pipeline,
    editor_state,
    open_editor,
    save_folder,
    with_image_channels,
    with_scale_embedding,
)
from undegrade.trainers.config import TrainConfig
from undegrade.trainers.editing import EditingConfig, EditorConfig, build_editing
from undegrade.trainers.editor_consistency import DistilledEditorConfig, EditorConsistencyConfig, build_editor_consistency
from undegrade.trainers.method import Context
from undegrade.utils.checkpoint import read_description, save_checkpoint
from undegrade.utils.data.sources.registry import open_source
from undegrade.utils.runs import find_checkpoint

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1


def test_an_ordinary_editor_equals_the_pipeline_of_diffusers_to_the_bit(tmp_path: Path) -> None:
    pipeline = saved_pipeline(tmp_path / "pipe")
    expected = pipeline(
        "Clean the image", image=(IMAGES[:1] + 1) / 2, num_inference_steps=5, guidance_scale=7.5, image_guidance_scale=1.5,
        generator=generators(0), output_type="latent",
    ).images  # fmt: skip
    editor = open_editor(tmp_path / "pipe")
    condition = editor.autoencoder.encode((IMAGES[:1] + 1) / 2 * 2 - 1)  # the pipeline's own rounding of the range
    assert torch.equal(edit(editor, condition, generators(0), 5, 7.5, 1.5), expected)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_published_folders_open_with_weights_of_either_precision(half: bool, tmp_path: Path) -> None:
    pipeline = saved_pipeline(tmp_path / "pipe", scale_width=12)
    if half:
        shutil.rmtree(tmp_path / "pipe")
        pipeline.to(torch.float16).save_pretrained(tmp_path / "pipe", variant="fp16")
    editor = open_editor(tmp_path / "pipe")
    assert editor.scale_width == 12 and next(editor.unet.parameters()).dtype == torch.float32
    assert editor_folder(tmp_path / "pipe") == tmp_path / "pipe" and editor_folder(tmp_path) is None


@pytest.mark.parametrize(("part", "message"), [
    ("unet", "lacks unet/config.json"), ("vae", "lacks vae/config.json"), ("scheduler", "lacks scheduler/scheduler_config.json"),
    ("text_encoder", "lacks text_encoder"),
])  # fmt: skip
def test_a_folder_without_a_part_is_refused_by_its_name(part: str, message: str, tmp_path: Path) -> None:
    saved_pipeline(tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / part)
    with pytest.raises(ValueError, match=message):
        open_editor(tmp_path / "pipe")


@pytest.mark.parametrize("scale_width", [None, 6])
def test_a_folder_of_ours_and_a_checkpoint_give_the_same_editor_again(scale_width: int | None, tmp_path: Path) -> None:
    editor = tiny_editor(scale_width)
    save_folder(editor, tmp_path / "folder")
    again = editor_from_description(describe_editor(editor), editor_state(editor), "here")
    condition = editor.autoencoder.encode(IMAGES)
    first, *others = (edit(e, condition, generators(0, 1), 3, 7.5, 1.3) for e in (editor, again, open_editor(tmp_path / "folder")))
    assert all(torch.equal(first, other) for other in others)
    assert len(editor_digest(tmp_path / "folder")) == 16
    with pytest.raises(ValueError, match="exists already"):
        save_folder(editor, tmp_path / "folder")


def test_a_unet_with_image_channels_does_not_see_the_image_at_first() -> None:
    wide = with_image_channels(tiny_unet(channels=4))
    z, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    one, other = (wide(torch.cat([z, c], 1), 10, encoder_hidden_states=text).sample for c in (z, -z))
    assert torch.equal(one, other) and wide.config.in_channels == 8


def test_an_editor_starts_from_a_text_to_image_pipeline_and_is_distilled_from_a_folder(tmp_path: Path) -> None:
    saved_pipeline(tmp_path / "text", channels=4)
    editor = editor_of_pipeline(tmp_path / "text")
    z, c, tau, told = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([500, 500]), torch.full((2,), TEXT)
    one, other = (editor.predict(editor.unet, z, tau, condition, told) for condition in (c, -c))
    assert torch.equal(one, other) and editor.scale_width is None
    context = Context(open_source("Digits", "train", limit=10), ["pixmix"], TrainConfig("x"))
    with pytest.raises(ValueError, match=r"model\.heads has no meaning beside model\.init_from"):
        build_editing(EditorConfig(init_from=str(tmp_path / "text"), heads=4), EditingConfig(), context)
    with pytest.raises(ValueError, match="is no folder of a text-to-image pipeline"):
        build_editing(EditorConfig(init_from=str(tiny_checkpoint(tmp_path))), EditingConfig(), context)
    saved_pipeline(tmp_path / "editor")
    with pytest.raises(ValueError, match="takes 8 channels, an editor starts from"):
        editor_of_pipeline(tmp_path / "editor")
    given = DistilledEditorConfig(init_from=str(tmp_path / "editor"), scale_width=6)
    method = build_editor_consistency(given, EditorConsistencyConfig(), context)
    assert sorted(context.weights) == [str(tmp_path / name) for name in ("editor", "tiny.safetensors")]
    assert editor_from_description(*reversed(method.export({"student": method.student})), "here").scale_width == 6


def tiny_checkpoint(folder: Path) -> Path:
    editor = tiny_editor()
    save_checkpoint(folder / "tiny.safetensors", editor_state(editor), describe_editor(editor))
    return folder / "tiny.safetensors"


def test_a_unet_with_scale_embedding_does_not_see_the_scales_at_first() -> None:
    narrow = tiny_unet()
    wide = with_scale_embedding(narrow, 6)
    inputs, text = torch.randn(2, 8, 8, 8), torch.randn(2, 5, 16)
    told = wide(inputs, 10, encoder_hidden_states=text, timestep_cond=torch.randn(2, 6)).sample
    assert torch.equal(told, narrow(inputs, 10, encoder_hidden_states=text).sample)


def test_guidance_weighs_its_three_rows() -> None:
    editor, z, tau = tiny_editor(), torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    c = editor.autoencoder.encode(IMAGES)
    rows = [
        editor.predict(editor.unet, z, tau, condition, torch.full((2,), text))
        for condition, text in ((c, TEXT), (c, NULL), (torch.zeros_like(c), NULL))
    ]
    w_text, w_image = 7.5, 1.3
    expected = w_text * rows[0] + (w_image - w_text) * rows[1] + (1 - w_image) * rows[2]
    assert torch.allclose(editor.guided(editor.unet, z, tau, c, w_text, w_image), expected, atol=1e-5)


def test_published_image_weights() -> None:
    published = [1.800, 1.752, 1.703, 1.652, 1.599, 1.545, 1.489, 1.430, 1.370, 1.306, 1.239, 1.168, 1.093, 1.012, 0.923, 0.826,
                 0.715, 0.584, 0.413, 0]  # fmt: skip
    assert image_weights(20) == pytest.approx(published, abs=6e-4)
    assert check_weights(1.5, 3) == [1.5] * 3
    with pytest.raises(ValueError, match="2 image guidance weights for 3 steps"):
        check_weights([1.0, 2.0], 3)


@pytest.mark.parametrize("width", [6, 7, 256])
def test_the_scales_are_told_as_the_product_of_their_sinusoids(width: int) -> None:
    found = scale_embedding(torch.tensor([7.5, 10.0]), torch.tensor([1.3, 1.1]), width)
    assert found.shape == (2, width)
    assert found[0, 0].item() == pytest.approx(math.sin(7500) * math.sin(1300), abs=1e-3)


def test_a_distilled_editor_repeats_itself_whatever_the_batch_and_asks_at_the_published_steps() -> None:
    editor = tiny_editor(scale_width=6)
    asked: list[int] = []
    editor.unet.register_forward_hook(lambda module, inputs, output: asked.append(int(inputs[1][0])))
    c = editor.autoencoder.encode(IMAGES)
    once = edit(editor, c, generators(0, 1), 4, 7.5, 1.3)
    assert asked == [999, 759, 499, 259]
    assert torch.equal(once, edit(editor, c, generators(0, 1), 4, 7.5, 1.3))
    assert torch.allclose(once[1:], edit(editor, c[1:], generators(1), 4, 7.5, 1.3), atol=1e-5)
    assert not torch.allclose(once, edit(editor, c, generators(0, 1), 4, 5.0, 1.3), atol=1e-4)
    with pytest.raises(ValueError, match=r"give 1\.\.50"):
        edit(editor, c, generators(0, 1), 100, 7.5, 1.3)
    with pytest.raises(ValueError, match="one image guidance weight"):
        edit(editor, c, generators(0, 1), 2, 7.5, [1.3, 1.2])


def test_the_adapter_keeps_the_size_and_repeats_itself() -> None:
    for width, steps, passes in ((None, 20, 60), (6, 4, 4)):
        adapter = Decorruptor(tiny_editor(width), DecorruptorOptions())
        assert adapter.options.steps == steps and adapter.passes == (passes, 0)
        edited = adapter.adapt(IMAGES, generators(0, 1))
        assert edited.shape == IMAGES.shape and torch.equal(edited, adapter.adapt(IMAGES, generators(0, 1)))


def test_images_of_other_sizes_need_a_resolution() -> None:
    odd = IMAGES[..., :15]
    with pytest.raises(ValueError, match="--resolution 16"):
        Decorruptor(tiny_editor(6), DecorruptorOptions()).adapt(odd, generators(0, 1))
    assert Decorruptor(tiny_editor(6), DecorruptorOptions(resolution=16)).adapt(odd, generators(0, 1)).shape == odd.shape
    with pytest.raises(ValueError, match="multiple of 2"):
        Decorruptor(tiny_editor(6), DecorruptorOptions(resolution=15))


def test_bright_batches_are_stretched_as_published_where_asked_for() -> None:
    bright = IMAGES.abs()
    usual, published = (Decorruptor(tiny_editor(6), DecorruptorOptions(stretch_bright=on)) for on in (False, True))
    assert torch.equal(published.adapt(bright, generators(0, 1)), usual.adapt(2 * bright - 1, generators(0, 1)))
    assert torch.equal(published.adapt(IMAGES, generators(0, 1)), usual.adapt(IMAGES, generators(0, 1)))
    assert published.batch_matters and not usual.batch_matters


def test_scales_outside_the_trained_range_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Decorruptor(tiny_editor(6), DecorruptorOptions(image_weight=1.8))
    assert "1.8 is outside the range 1 to 1.5" in caplog.text


def test_training_and_adaptation_by_the_commands(tmp_path: Path) -> None:
    for recipe in ("vae", "dpm", "cm"):
        run_script("train.py", "-c", f"tests/recipes/{recipe}.yaml", "--save_dir", tmp_path, "--data.limit", 40).check()
    description = read_description(find_checkpoint("editor/Digits/vae", tmp_path))
    assert description["vae"]["scaling_factor"] not in (0.18215, 1)
    for words in (("cm", "--steps", 2), ("dpm", "--steps", 2, "--image_weight", "[1.5,1.0]")):
        out, model = tmp_path / f"adapted_{words[0]}", f"editor/Digits/{words[0]}"
        run_script(
            "image_adapt/scripts/image_sample.py", "--adapter", "decorruptor", "--model_path", model, "--runs",
            tmp_path, "--save_dir", out, "--corruption", "fog", "--limit", 4, *words[1:],
        ).check()  # fmt: skip
        assert len(list(out.rglob("*.png"))) == 4


@pytest.mark.parametrize("distilled", [False, True], ids=["dpm", "cm"])
def test_the_published_snippet_works_with_our_pipelines(distilled: bool, tmp_path: Path) -> None:
    from PIL import Image

    from undegrade.image_adapt.pipelines import ConsistInstructPix2PixPipeline, IP2PLatentConsistencyModelPipeline, LCMScheduler

    saved_pipeline(tmp_path / "model", 768 if distilled else None)
    kind = IP2PLatentConsistencyModelPipeline if distilled else ConsistInstructPix2PixPipeline
    more = {"scheduler": LCMScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")} if distilled else {}
    pipe = kind.from_pretrained(tmp_path / "model", torch_dtype=torch.float32, use_safetensors=True, safety_checker=None, **more)
    image = Image.fromarray(((IMAGES[0].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy())

    def out(seed: int, count: int = 1) -> list[Image.Image]:
        return pipe(
            prompt=["Clean the image"], image=image, num_images_per_prompt=count, num_inference_steps=4,
            generator=torch.Generator().manual_seed(seed), image_guidance_scale=1.3, guidance_scale=7.5,
        ).images  # fmt: skip

    assert out(1)[0].size == (16, 16) and out(1)[0].tobytes() == out(1)[0].tobytes() != out(2)[0].tobytes()
    assert len(out(1, 3)) == 3
    with pytest.raises(ValueError, match="image is missing"):
        pipe("Clean the image")
