"""DiT: the converted network is the published formulas; its checkpoints, its decoder, and images
made with them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor

from tests.adapting import pngs
from tests.dit_networks import OriginalDiT
from tests.scripts import Done, run_script
from undegrade.models.diffusion.denoiser import Denoiser
from undegrade.models.diffusion.dit import build_dit, convert_state_dict, dit_config, dit_digest, dit_folder, open_dit
from undegrade.models.diffusion.guidance import guided
from undegrade.models.diffusion.sampling import draw_noise, p_mean_variance
from undegrade.models.diffusion.vae import open_decoder

SCRIPT = "image_adapt/scripts/generate.py"
HEADS = 3
T, Y = torch.tensor([0, 317, 999]), torch.tensor([0, 4, 5])  # the last label is the null label


def latents(n: int = 3) -> Tensor:
    return draw_noise((4, 4, 4), [torch.Generator().manual_seed(i) for i in range(n)], torch.empty(0))


def error(denoiser: Denoiser, original: OriginalDiT) -> float:
    eps, r = denoiser(latents(), T, Y)
    assert r is not None
    return float((torch.cat([eps, r], 1) - original(latents(), T, Y)).abs().max().detach())


def save_vae(folder: Path, channels: int = 4) -> Path:
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8),
        latent_channels=channels, norm_num_groups=4,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def original() -> OriginalDiT:
    return OriginalDiT()


@pytest.fixture(scope="module")
def checkpoint(original: OriginalDiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dit") / "DiT.pt"
    torch.save(original.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vae(tmp_path_factory.mktemp("vae") / "vae")


def transformer(original: OriginalDiT) -> DiTTransformer2DModel:
    """The same weights as diffusers computes them."""
    network = DiTTransformer2DModel(**dit_config(original.state_dict(), HEADS))
    network.load_state_dict(convert_state_dict(original.state_dict()))
    return network


# --- the network


def test_converted_network_is_the_published_formulas(checkpoint: Path, original: OriginalDiT) -> None:
    denoiser = open_dit(checkpoint, num_heads=HEADS)
    assert error(denoiser, original) <= 1e-5
    facts = (denoiser.num_classes, denoiser.null_label, denoiser.learn_sigma, denoiser.channels, denoiser.image_size)
    assert facts == (5, True, True, 4, 4)
    assert torch.equal(denoiser(latents(), T)[0], denoiser(latents(), T, torch.tensor([5, 5, 5]))[0])
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())


def test_each_correction_is_needed(checkpoint: Path, original: OriginalDiT) -> None:
    assert error(open_dit(checkpoint, "diffusers", HEADS), original) > 0.1
    denoiser = open_dit(checkpoint, num_heads=HEADS)
    blocks = denoiser.unet.transformer_blocks
    for block in blocks:  # type: ignore[union-attr]
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    assert error(denoiser, original) > 0.1
    for block in blocks:  # type: ignore[union-attr]
        block.norm1.emb.time_proj.downscale_freq_shift, block.norm3.eps = 0, 1e-2  # 1e-5 shows at the scale of 1e-5 only
    assert error(denoiser, original) > 1e-3
    assert {block.norm3.eps for block in open_dit(checkpoint, num_heads=HEADS).unet.transformer_blocks} == {1e-6}  # type: ignore[union-attr]


def test_weights_of_the_embedders_are_held_once(checkpoint: Path, original: OriginalDiT) -> None:
    denoiser = open_dit(checkpoint, num_heads=HEADS)
    assert (
        sum(p.numel() for p in denoiser.parameters()) == sum(p.numel() for p in original.parameters()) - original.pos_embed.numel()
    )


def test_configuration_is_read_off_the_shapes() -> None:
    with torch.device("meta"):
        widths = {1152: 16, 1024: 16, 768: 12, 384: 6}
        for width, heads in widths.items():
            shapes = {
                "x_embedder.proj.weight": torch.empty(width, 4, 2, 2), "pos_embed": torch.empty(1, 256, width),
                "y_embedder.embedding_table.weight": torch.empty(1001, width), "t_embedder.mlp.0.weight": torch.empty(width, 256),
                "final_layer.linear.weight": torch.empty(32, width), "blocks.27.attn.proj.weight": torch.empty(width, width),
            }  # fmt: skip
            assert dit_config(shapes) == {
                "num_attention_heads": heads, "attention_head_dim": width // heads, "in_channels": 4, "out_channels": 8,
                "num_layers": 28, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000,
            }  # fmt: skip


def test_parameters_of_dit_xl_are_the_published_number() -> None:
    """675,129,632 with the positions (256 x 1152), which are a buffer here."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        network = DiTTransformer2DModel(num_embeds_ada_norm=1000, out_channels=8)
    first, *others = network.transformer_blocks
    copies = sum(p.numel() for block in others for p in block.norm1.emb.parameters())
    assert sum(p.numel() for p in network.parameters()) - copies + 256 * 1152 == 675_129_632


def test_reverse_step_and_guidance_are_those_of_pixels(checkpoint: Path) -> None:
    denoiser = open_dit(checkpoint, num_heads=HEADS)
    schedule, x, y = denoiser.schedule("250"), latents(2), torch.tensor([1, 2])
    assert len(schedule) == 250 and schedule.timesteps[-1] == 999
    step = p_mean_variance(denoiser, schedule, x, 100, clip_denoised=False, y=y)
    assert step.mean.shape == x.shape and isinstance(step.std, Tensor) and step.x0.abs().max() > 1
    tau = schedule.timesteps[100].expand(2)
    (with_class, r), (none, _) = denoiser(x, tau, y), denoiser(x, tau)
    eps, variance = guided(denoiser, 4, 3)(x, tau, y)
    assert variance is not None
    torch.testing.assert_close(eps[:, :3], (none + 4 * (with_class - none))[:, :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(eps[:, 3:], with_class[:, 3:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(variance, r, rtol=1e-4, atol=1e-4)


# --- its files


def test_folder_of_diffusers_is_computed_as_its_class_says(original: OriginalDiT, tmp_path: Path) -> None:
    transformer(original).save_pretrained(tmp_path / "transformer")
    folder = dit_folder(tmp_path)
    assert folder == tmp_path / "transformer" == dit_folder(folder) and dit_folder(tmp_path / "other") is None
    expected = transformer(original).eval()(latents(), T, Y).sample
    denoiser = open_dit(folder)
    torch.testing.assert_close(torch.cat(denoiser(latents(), T, Y), 1), expected, rtol=0, atol=1e-5)
    assert error(open_dit(folder, "original"), original) <= 1e-5
    config = json.loads((folder / "config.json").read_text())  # as the converted published weights say it
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero"}))
    assert error(open_dit(folder), original) <= 1e-5


def test_digest_tells_weights_and_ways_of_computing_apart(checkpoint: Path, vae: Path, tmp_path: Path) -> None:
    base = dit_digest(checkpoint, vae)
    assert base == dit_digest(checkpoint, vae, "original") and len(base) == 16
    other = save_vae(tmp_path / "vae", 8)
    assert (
        len({base, dit_digest(checkpoint, vae, "diffusers"), dit_digest(checkpoint, vae, None, 2), dit_digest(checkpoint, other)})
        == 4
    )


def damaged(original: OriginalDiT, kind: str) -> dict[str, Tensor]:
    state = dict(original.state_dict())
    if kind == "lacking":
        del state["blocks.1.mlp.fc2.bias"]
    elif kind == "foreign":
        state = {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    elif kind == "more":
        state["extra.weight"] = torch.zeros(2)
    elif kind == "shapes":
        state["blocks.0.mlp.fc1.weight"] = torch.zeros(7, 24)
    elif kind == "oblong":
        state["pos_embed"] = torch.zeros(1, 6, 24)
    return state


@pytest.mark.parametrize(
    ("kind", "heads", "message"),
    [
        ("lacking", 3, "not a whole DiT of 2 blocks: blocks.1.mlp.fc2.bias is missing"),
        ("foreign", 3, r"not a state dict of DiT: it lacks x_embedder.proj.weight.* holds 2 tensors \(conv1.weight, fc.bias"),
        ("more", 3, "1 tensors that a DiT does not have: extra.weight"),
        ("shapes", 3, "do not fit the described network"),
        ("oblong", 3, "6 positions, .*positions be a square"),
        ("none", None, r"its width 24 is none of the published sizes \[1152, 1024, 768, 384\]: give the attention heads"),
        ("none", 5, "width 24 with 5 heads.*heads must divide the width"),
    ],
)
def test_checkpoints_that_are_no_dit_are_refused(
    original: OriginalDiT, tmp_path: Path, kind: str, heads: int | None, message: str
) -> None:
    torch.save(damaged(original, kind), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as caught:
        open_dit(tmp_path / "x.pt", num_heads=heads)
    assert str(tmp_path / "x.pt") in str(caught.value)


def test_truncated_file_and_other_chains_are_refused(checkpoint: Path, original: OriginalDiT, tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ValueError, match="half.pt cannot be read as a file of tensors"):
        open_dit(tmp_path / "half.pt")
    transformer(original).save_pretrained(tmp_path / "pipe/transformer")
    (tmp_path / "pipe/scheduler").mkdir()
    (tmp_path / "pipe/scheduler/scheduler_config.json").write_text('{"beta_schedule": "scaled_linear", "beta_end": 0.02}')
    with pytest.raises(ValueError, match="scheduler_config.json says {'beta_schedule': 'scaled_linear'}"):
        open_dit(tmp_path / "pipe/transformer")


# --- the decoder


def test_decoder_is_that_of_diffusers_at_the_scale_of_the_latents(checkpoint: Path, vae: Path) -> None:
    decoder = open_decoder(vae, open_dit(checkpoint, num_heads=HEADS))
    assert (decoder.factor, decoder.channels) == (2, 4)
    expected = AutoencoderKL.from_pretrained(vae).decode(latents() / 0.18215).sample
    torch.testing.assert_close(decoder(latents()), expected, rtol=1e-4, atol=1e-5)


def test_decoder_of_other_latents_or_none_is_refused(checkpoint: Path, original: OriginalDiT, tmp_path: Path) -> None:
    denoiser = open_dit(checkpoint, num_heads=HEADS)
    with pytest.raises(ValueError, match="has latents of 8 channels, the diffusion model makes 4"):
        open_decoder(save_vae(tmp_path / "vae", 8), denoiser)
    with pytest.raises(FileNotFoundError, match="nothing holds no config.json"):
        open_decoder(tmp_path / "nothing", denoiser)
    transformer(original).save_pretrained(tmp_path / "transformer")
    with pytest.raises(ValueError, match="holds a DiTTransformer2DModel, a AutoencoderKL is needed here"):
        open_decoder(tmp_path / "transformer", denoiser)


# --- images


def made(model: Path, save_dir: Path, *more: object) -> Done:
    short = ("--num-sampling-steps", 3, "--num_per_class", 1, "--classes", "0,4", "--batch_size", 2)
    return run_script(SCRIPT, "--model_path", model, "--save_dir", save_dir, *short, *more)


def test_images_of_a_state_dict_and_of_its_pipeline_are_the_same(
    checkpoint: Path, vae: Path, original: OriginalDiT, tmp_path: Path
) -> None:
    made(checkpoint, tmp_path / "a", "--vae", vae, "--num_heads", HEADS, "--cfg-scale", 4, "--image-size", 8).check()
    transformer(original).save_pretrained(tmp_path / "pipe/transformer")
    save_vae(tmp_path / "pipe/vae")
    made(tmp_path / "pipe", tmp_path / "b", "--embedding", "original", "--cfg-scale", 4).check()
    assert list(pngs(tmp_path / "a")) == ["0000/000000.png", "0004/000004.png"] and pngs(tmp_path / "a") == pngs(tmp_path / "b")
    settings = json.loads((tmp_path / "a/settings.json").read_text())
    assert settings["generator"] == "latents" and settings["parameters"] == {
        "respacing": "3", "guidance_scale": 4.0, "guided_channels": 3, "variance": "learned", "clip_denoised": False,
    }  # fmt: skip
    done = made(checkpoint, tmp_path / "a", "--vae", vae, "--num_heads", HEADS, "--cfg-scale", 4, "--embedding", "diffusers")
    assert done.status == 2 and "images made with other settings (model: " in done.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "makes latents: give the VAE that decodes them with --vae"),
        (("--vae", "{vae}", "--image_size", 9), "image_size 9 is no multiple of 2, the pixels that the VAE makes"),
        (("--vae", "{vae}", "--image_size", 16), "image_size 16: this model makes images of 8 px"),
        (("--vae", "{vae}", "--classes", 5), "--classes 5: the generator has the classes 0..4"),
    ],
)
def test_mistakes_are_named(checkpoint: Path, vae: Path, tmp_path: Path, more: tuple[object, ...], message: str) -> None:
    words = [str(word).replace("{vae}", str(vae)) for word in more]
    done = made(checkpoint, tmp_path / "out", "--num_heads", HEADS, *words)
    assert done.status == 2 and message in done.err and "Traceback" not in done.err


def test_chain_has_250_steps_by_default(checkpoint: Path, vae: Path, tmp_path: Path) -> None:
    given = ("--model_path", checkpoint, "--vae", vae, "--num_heads", HEADS, "--save_dir", tmp_path, "--dry_run")
    assert "steps: 250; passes of the network: 250 an image" in run_script(SCRIPT, *given).check().out


def test_build_takes_its_own_positions_where_none_are_given(original: OriginalDiT) -> None:
    state = original.state_dict()
    assert error(build_dit(dit_config(state, HEADS), convert_state_dict(state), "original").eval(), original) <= 1e-5
