"""Methods of test-time adaptation: their formulas, what moves, going back, going on."""

from __future__ import annotations

import copy
import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.photo_like import photo_like
from undegrade.evaluation.predictors import PREDICTORS, read_options
from undegrade.evaluation.surroundings import Surroundings
from undegrade.evaluation.tta.adapting import ALONE, METHODS
from undegrade.evaluation.tta.augmentation import strong_augmentation
from undegrade.evaluation.tta.cotta import Cotta
from undegrade.evaluation.tta.deyo import shuffled_patches
from undegrade.evaluation.tta.eata import Eata
from undegrade.evaluation.tta.layers import Blending, layers_of
from undegrade.evaluation.tta.losses import entropy
from undegrade.evaluation.tta.memo import marginal_entropy
from undegrade.evaluation.tta.rotta import Rotta
from undegrade.evaluation.tta.sar import Sar
from undegrade.models.classification.classifier import Classifier, build_classifier, describe, final_layer
from undegrade.models.classification.loading import load_classifier
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.models.diffusion.denoiser import describe as describe_denoiser
from undegrade.utils.checkpoint import save_checkpoint
from undegrade.utils.data.sources.image_source import ImageSource, array_source

CLASSES, SIDE, COUNT = 4, 16, 12
SMALL: dict[str, dict[str, Any]] = {  # options that make a method quick on toys
    "cotta": {"augmentations": 2},
    "memo": {"augmentations": 3},
    "rmt": {"images": 24, "batch": 12},
    "eata": {"images": 24, "batch": 12, "margin": 1.0},
    "sar": {"margin": 1.0, "recovery": 0.0},
    "deyo": {"margin": 1.0, "difference": 0.0},
    "rotta": {"memory": 8},
}


def images(count: int = COUNT, seed: int = 0) -> Tensor:
    """Images [count,3,16,16] in [0,1]."""
    return photo_like(count, SIDE, seed).float() / 255


def training() -> ImageSource:
    labels = np.arange(24) % CLASSES
    return array_source("Toy/train", photo_like(24, SIDE, 5).numpy(), labels, list("abcd"), [f"{i:02d}" for i in range(24)])


def network(arch: str = "ResNet20", **sizes: Any) -> Classifier:
    torch.manual_seed(0)
    classifier = build_classifier(arch, CLASSES, (0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        final_layer(classifier).weight.mul_(3)  # classes that differ in certainty
    classifier.train()(images(24, 9))  # statistics of its own
    return classifier.eval()


@functools.cache
def folder() -> Path:
    """Of further checkpoints: a diffusion model of the classes, two specialists."""
    made = Path(tempfile.mkdtemp())
    torch.manual_seed(1)
    denoiser = build_denoiser(SIDE, [8, 8], num_classes=CLASSES)
    save_checkpoint(made / "diffusion.safetensors", denoiser.unet.state_dict(), describe_denoiser(denoiser))
    for seed in (1, 2):
        other = network()
        for parameter in other.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
        save_checkpoint(made / f"{seed}.safetensors", other.network.state_dict(), describe(other))
    return made


def method(name: str, classifier: Classifier | None = None, cache: Path | None = None, **options: Any) -> Any:
    """A method before its first image."""
    files: dict[str, Any] = {"dusa": {"diffusion": str(folder() / "diffusion.safetensors")}}
    files["live_fusion"] = {"specialists": [str(folder() / f"{seed}.safetensors") for seed in (1, 2)]}
    _, given = read_options({"name": name, **SMALL.get(name, {}), **files.get(name, {}), **options}, "predictor")
    made = PREDICTORS[name].build(classifier or network(), given, Surroundings(training, cache, "digest"))
    made.reset()
    return made


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


# --- all methods


@pytest.mark.parametrize("name", METHODS)
def test_a_reset_goes_back_to_the_state_before_the_first_image(name: str) -> None:
    made, batches = method(name), images(24).split(8)
    first = copy.deepcopy(made.state())
    answers = [made.predict(batch) for batch in batches]
    assert all(answer.shape == (8, CLASSES) and not answer.requires_grad for answer in answers)
    made.reset()
    assert same(made.state(), first)
    assert all(torch.equal(made.predict(batch), answer) for batch, answer in zip(batches, answers, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_state_on_disk_is_gone_on_from(name: str, tmp_path: Path) -> None:
    made, batches = method(name), images(24).split(8)
    for batch in batches[:2]:
        made.predict(batch)
    torch.save(made.state(), tmp_path / "state.pt")
    last = made.predict(batches[2])
    other = method(name)
    other.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.predict(batches[2]), last)


@pytest.mark.parametrize("name", METHODS)
def test_other_random_streams_are_left_alone_and_do_not_matter(name: str) -> None:
    batch, answers = images(8), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made = method(name)
        torch.set_rng_state(before)
        answers.append(made.predict(batch))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*answers)


MOVED = {  # parameters of ResNet20 that a method moves; all others stay
    **dict.fromkeys(["bn", "bn_ema", "lame", "t3a", "neo"], "none"),
    **dict.fromkeys(["tent", "eata", "sar", "deyo", "roid", "rotta"], "normalisation"),
    **dict.fromkeys(["cotta", "rmt", "dusa", "live_fusion"], "all"),
}


@pytest.mark.parametrize("name", MOVED)
def test_only_what_a_method_is_said_to_move_moves(name: str) -> None:
    made = method(name)
    before = {key: value.clone() for key, value in made.classifier.network.named_parameters()}
    for batch in images(24).split(8):
        made.predict(batch)
    moved = {key for key, value in made.classifier.network.named_parameters() if not torch.equal(value, before[key])}
    norms = {f"{layer}.{key}" for layer in layers_of(made.classifier.network) for key in ("weight", "bias")}
    expected = {"none": set(), "normalisation": norms, "all": set(before)}[MOVED[name]]
    assert moved <= expected and len(moved) >= 0.8 * len(expected)


def test_memo_gives_every_image_an_answer_of_its_own() -> None:
    made, batch = method("memo"), images(4)
    assert not made.stateful
    together = made.predict(batch)
    assert torch.equal(together, torch.cat([made.predict(image[None]) for image in batch.flip(0)]).flip(0))
    assert not torch.allclose(together, network()(batch), atol=1e-3)


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "convnext_atto", "resnet10t.c3_in1k"])
@pytest.mark.parametrize("name", ["tent", "sar", "roid", "rotta", "deyo"])
def test_networks_of_timm_fit(arch: str, name: str) -> None:
    made, side = method(name, build_classifier(arch, CLASSES, (0.5,) * 3, (0.25,) * 3)), 224 if "vit" in arch else 64
    assert made.predict(torch.rand(2, 3, side, side)).shape == (2, CLASSES) and len(made.moved) >= 2


@pytest.mark.parametrize(("name", "message"), [
    ("bn", "predictor 'bn' needs a network with BatchNorm, and convnext_atto has LayerNorm2d"),
    ("bn_ema", "choose one of cotta, deyo, dusa, eata"),
])  # fmt: skip
def test_a_network_without_the_layers_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, build_classifier("convnext_atto", CLASSES, (0.5,) * 3, (0.25,) * 3))


# --- one by one


def test_bn_is_the_network_in_training_mode() -> None:
    batch = images()
    assert torch.allclose(method("bn").predict(batch), network().train()(batch).detach(), atol=1e-5)


def test_alpha_mixes_the_statistics() -> None:
    batch = images()
    assert torch.equal(method("bn", alpha=0.0).predict(batch), network()(batch).detach())
    layer, x = nn.BatchNorm2d(3).eval(), torch.randn(6, 3, 4, 4) * 2 + 1
    Blending(nn.Sequential(layer), 0.3, unbiased=True)
    var, mean = torch.var_mean(x, (0, 2, 3))
    expected = F.batch_norm(x, 0.3 * mean, 0.7 + 0.3 * var, layer.weight, layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5) and torch.allclose(layer(x), expected, atol=1e-5), "the second time, too"


def test_tent_makes_the_published_step() -> None:
    made, batch = method("tent"), images()
    by_hand = network().train()
    norms = [p for layer in layers_of(by_hand).values() for p in layer.parameters(recurse=False)]
    optimizer = torch.optim.Adam(norms, 1e-3)
    for _ in range(2):
        logits = by_hand(batch)
        loss = torch.distributions.Categorical(logits=logits).entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.allclose(made.predict(batch), logits, atol=1e-4)


def test_eatas_fisher_information_is_kept_and_names_the_images(tmp_path: Path) -> None:
    made: Eata = method("eata", cache=tmp_path)
    (file,) = tmp_path.iterdir()
    time = file.stat().st_mtime_ns
    again: Eata = method("eata", cache=tmp_path)
    assert file.stat().st_mtime_ns == time and all(map(torch.equal, made.fisher, again.fisher))
    by_hand = network().train()
    for p in by_hand.parameters():
        p.requires_grad_(False)
    layer = next(iter(layers_of(by_hand).values()))
    layer.weight.requires_grad_(True)  # type: ignore[union-attr]
    ordered = Surroundings(training).training_images(24, "")
    squares = []
    for number in range(2):
        logits = by_hand(ordered.batch(number, 12, torch.device("cpu"))[0])
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), [layer.weight])  # type: ignore[list-item]
        squares.append(gradient.square())
    assert torch.allclose(made.fisher[0], torch.stack(squares).mean(0), rtol=1e-2, atol=1e-9)


def test_eata_without_images_says_how_to_do_without() -> None:
    def nothing() -> ImageSource:
        raise FileNotFoundError("data/train is not there")

    _, options = read_options({"name": "eata"}, "predictor")
    with pytest.raises(ValueError, match="clean training images are needed for EATA.*`fisher: 0` does without"):
        PREDICTORS["eata"].build(network(), options, Surroundings(nothing))


def test_eata_and_sar_leave_uncertain_images_out() -> None:
    for name in ("eata", "sar"):
        made = method(name, margin=1e-6)
        before = [p.detach().clone() for p in made.moved.values()]
        made.predict(images())
        assert all(map(torch.equal, before, made.moved.values())), name


def test_sar_starts_anew_where_it_has_collapsed() -> None:
    made: Sar = method("sar", recovery=10.0, lr=0.1)
    start = [p.detach().clone() for p in made.moved.values()]
    made.predict(images())
    assert all(map(torch.equal, start, made.moved.values())) and made.memory["loss"] is None


def test_cotta_restores_all_weights_where_the_probability_is_one() -> None:
    made: Cotta = method("cotta", restore=1.0)
    made.predict(images())
    assert all(map(torch.equal, made.classifier.parameters(), made.source.parameters()))
    assert not all(map(torch.equal, made.teacher.parameters(), made.source.parameters()))


def test_rottas_memory_is_balanced_and_lets_the_uncertain_go() -> None:
    made: Rotta = method("rotta", memory=8, every=1000)
    for number in range(40):
        made._remember(torch.full((3, 2, 2), float(number)), number % 2, uncertainty=number / 40)
    labels = made.memory["labels"]
    assert len(labels) == 4 and labels.count(0) == labels.count(1) == 2, "2 of each class, as 8 places are for 4 classes"
    made._remember(torch.zeros(3, 2, 2), 0, uncertainty=math.log(CLASSES))
    assert made.memory["labels"].count(0) == 2 and math.log(CLASSES) not in made.memory["entropies"]


def test_rottas_statistics_carry_a_gradient() -> None:
    layer = nn.BatchNorm2d(3).eval()
    net = nn.Sequential(layer)
    Blending(net, 0.4, keep=True)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    own_mean, own_var = layer.running_mean.clone(), layer.running_var.clone()  # type: ignore[union-attr]
    weights = torch.randn(4, 3, 5, 5)
    (found,) = torch.autograd.grad((net(x) * weights).sum(), [x])
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    mean, var = 0.6 * own_mean + 0.4 * mean, 0.6 * own_var + 0.4 * var
    y = (x - mean[None, :, None, None]) / (var[None, :, None, None] + layer.eps).sqrt()
    (expected,) = torch.autograd.grad((y * weights).sum(), [x])
    assert torch.allclose(found, expected, atol=1e-5)


def test_deyos_patches_are_all_there() -> None:
    x = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).view(2, 3, 16, 16)
    shuffled = shuffled_patches(x, 4)
    assert torch.equal(shuffled.flatten(2).sort(2).values, x.flatten(2)) and not torch.equal(shuffled, x)
    patch = shuffled[0, :, :4, :4]
    assert torch.equal(patch[:, :, 1:] - patch[:, :, :-1], torch.ones(3, 4, 3)), "pixels stay side by side within a patch"


def test_lame_draws_alike_images_together_and_leaves_a_lone_one() -> None:
    made = method("lame")
    single = images(1)
    assert torch.equal(made.predict(single).argmax(1), network()(single).argmax(1))
    chances = made.predict(images(24)).exp()
    assert torch.allclose(chances.sum(1), torch.ones(24), atol=1e-4)


def test_t3a_without_test_images_is_the_last_layers_directions() -> None:
    made, classifier = method("t3a", supports=1), network()
    features = classifier.features(images(2), ["pooled"])["pooled"]
    kept = {key: value.clone() for key, value in made.memory.items()}
    assert torch.allclose(kept["features"], F.normalize(final_layer(classifier).weight), atol=1e-6)
    assert made.predict(images(2)).shape == (len(features), CLASSES)
    assert all((made.memory["labels"] == k).sum() <= 1 for k in range(CLASSES))


def test_neo_centres_the_features() -> None:
    made, batch = method("neo"), images()
    classifier = network()
    features = classifier.features(batch, ["pooled"])["pooled"]
    assert torch.allclose(made.predict(batch), final_layer(classifier)(features - features.mean(0)), atol=1e-5)


def test_marginal_entropy() -> None:
    logits = torch.randn(5, 3)
    mean = logits.softmax(1).mean(0)
    assert marginal_entropy(logits).item() == pytest.approx(-(mean * mean.log()).sum().item())


def test_strong_augmentation_keeps_shape_and_range() -> None:
    torch.manual_seed(0)
    x = images()
    for blurred in (True, False):
        changed = strong_augmentation(SIDE, "reflect", blurred)(x)
        assert changed.shape == x.shape and changed.amin() >= 0 and changed.amax() <= 1 and not torch.allclose(changed, x)


def test_dusa_learns_with_its_diffusion_model_and_wants_one_of_the_same_classes() -> None:
    made = method("dusa", best=2, random=1)
    before = [p.detach().clone() for p in made.denoiser.parameters()]
    classes = made._candidates(network()(images()).detach())
    assert all(len(set(row)) == 3 for row in classes.tolist())
    made.predict(images())
    assert not all(map(torch.equal, before, made.denoiser.parameters()))
    with pytest.raises(ValueError, match=r"has 4 classes, the classifier 3: give a class-conditional diffusion model"):
        method("dusa", build_classifier("ResNet20", 3, (0.5,) * 3, (0.25,) * 3))


@pytest.mark.parametrize(("temperature", "shares"), [(1e6, [1 / 3] * 3), (1e-4, None)])
def test_live_fusion_lies_between_the_uniform_soup_and_the_most_certain_specialist(
    temperature: float, shares: list[float] | None
) -> None:
    batch, made = images(), method("live_fusion", temperature=temperature)
    networks = [network(), *(load_classifier(folder() / f"{seed}.safetensors") for seed in (1, 2))]
    if shares is None:
        certain = [-torch.distributions.Categorical(logits=one.train()(batch)).entropy().mean() for one in networks]
        shares = torch.nn.functional.one_hot(torch.stack(certain).argmax(), 3).tolist()
    fused = network()
    for own, *others in zip(fused.parameters(), *(one.parameters() for one in networks), strict=True):
        own.data = sum(share * other.data for share, other in zip(shares, others, strict=True))  # type: ignore[assignment]
    assert torch.allclose(made.predict(batch), fused.train()(batch).detach(), atol=1e-3)


# --- single images


def test_a_window_gives_single_images_the_statistics_of_the_latest_ones() -> None:
    batch, made = images(6), method("bn", window=4)
    answers = torch.cat([made.predict(image[None]) for image in batch])
    whole = method("bn")
    assert torch.allclose(answers[3], whole.predict(batch[:4])[3], atol=1e-5)
    assert torch.allclose(answers[5], whole.predict(batch[[4, 5, 2, 3]])[1], atol=1e-5)


def test_a_window_makes_a_step_when_all_of_it_is_new() -> None:
    made, batch = method("tent", window=4), images(8)
    start = [p.detach().clone() for p in made.moved.values()]
    moves = []
    for image in batch:
        made.predict(image[None])
        moves.append(not all(map(torch.equal, start, made.moved.values())))
    assert moves == [False, False, False, True, True, True, True, True]


def test_a_single_image_without_a_window_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    made = method("tent")
    for image in images(3):
        made.predict(image[None])
    assert [record.getMessage() for record in caplog.records] == [ALONE]


# --- the guard


@pytest.mark.parametrize("name", [name for name in METHODS if name != "roid"])
def test_a_guarded_batch_is_answered_by_whichever_is_surer(name: str) -> None:
    classifier = network()
    expected = {}
    for guard in (False, True):
        made = method(name, copy.deepcopy(classifier), guard=guard)
        expected[guard] = made.predict(images(8, 3))
    own = classifier(images(8, 3)).detach()
    surer = min((own, expected[False]), key=lambda logits: entropy(logits).mean())
    assert torch.allclose(expected[True], surer, atol=1e-5)
    assert made.networks["classifier"] is made.classifier and "unchanged" not in made.state()["networks"]


def test_a_guard_answers_as_before_where_the_change_made_the_classifier_unsure() -> None:
    classifier, batch = network(), images(8, 3)
    made = method("bn", classifier, guard=True)
    own = made.unchanged(batch).detach()
    with torch.no_grad():
        final_layer(made.classifier).weight.mul_(0.01)
    assert torch.equal(made.predict(batch), own)
    assert torch.equal(method("bn", network(), guard=True, window=8).unchanged(batch).detach(), own)
    with pytest.raises(ValueError, match="give prior: false, too"):
        method("roid", guard=True)
    assert method("roid", guard=True, prior=False).predict(batch).shape == (8, CLASSES)


# --- some of the classes


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("rmt", "dusa")])  # whose images and models are of all
def test_of_some_of_the_classes_no_other_is_predicted(name: str) -> None:
    classifier = network()
    classifier.restrict([2, 0])
    assert method(name, classifier).predict(images(8)).shape == (8, 2)
