"""RepFusion: which loss trains which part, cached and uncached features, runs from the command
line, and what is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from tests.loops import metrics_of
from tests.scripts import Done, run_script
from tests.tiny import SIDE, tiny_batch, tiny_classifier, tiny_context
from undegrade.evaluation.result_files import RESULTS, read_json
from undegrade.models.diffusion.denoiser import build_denoiser
from undegrade.models.diffusion.features import DiffusionFeatures
from undegrade.trainers.feature_teachers import DiffusionTeacher, FeatureCache
from undegrade.trainers.method import Context, check_parts
from undegrade.trainers.repfusion import RepFusion, RepFusionConfig
from undegrade.trainers.time_steps import TimeStepConfig, possible_steps
from undegrade.utils.checkpoint import load_checkpoint, read_description
from undegrade.utils.data.batches import Batch
from undegrade.utils.seeding import seed_everything

HINT = "configs/repfusion/Digits/ResNet20_hint.yaml"
FIXED = "configs/repfusion/Digits/ResNet20_hint_fixed.yaml"
POLICY = TimeStepConfig("policy", grid=5, end_epoch=10)


def method(
    time: TimeStepConfig = POLICY, cache: FeatureCache | None = None, context: Context | None = None, **more: object
) -> RepFusion:
    seed_everything(0)
    context = context or tiny_context()
    config = RepFusionConfig(layers=["stage1"], time=time, **more)
    steps = possible_steps(time, 1000)
    features = DiffusionFeatures(build_denoiser(SIDE, [8, 8]))
    teacher = DiffusionTeacher(features, context.source, config.teacher.standardise, config.pooled, steps, cache=cache)
    return RepFusion(tiny_classifier(), teacher, config, context, steps).train()


def with_gradients(loss: Tensor, model: RepFusion) -> set[str]:
    """Parts that a loss reaches."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    found = {name: [p.grad for p in part.parameters() if p.grad is not None] for name, part in model.named_parts().items()}
    assert all(p.grad is None for p in model.teacher.parameters())
    return {name for name, gradients in found.items() if any(g.abs().max() > 0 for g in gradients)}


def test_each_loss_trains_its_own_part_and_nothing_reaches_the_teacher() -> None:
    model = method()
    check_parts(model)
    batch = model.prepare(tiny_batch(images=6), 0, 0, 0)
    assert with_gradients(model(batch)["loss"], model) == {"student", "projector", "head", "policy"}
    logits = model.policy(2 * batch["clean"] - 1)
    actions = (logits + batch["gumbel"]).argmax(1)
    targets = model.teacher(batch["clean"], torch.tensor(model.steps)[actions], batch)
    features = model._features(model.student, batch["clean"])[1]
    assert with_gradients(model._distance(features, targets, None), model) == {"student", "projector"}
    assert with_gradients(model._policy_loss(logits, actions, targets, batch, {}), model) == {"head", "policy"}
    head = torch.nn.functional.cross_entropy(model.head(torch.cat([m.mean((2, 3)) for m in targets], 1)), batch["label"])
    assert with_gradients(head, model) == {"head"}


def test_pooled_before_and_after_the_projection_is_the_same() -> None:
    model = method()
    maps = torch.randn(3, 4, 5, 5)
    project = model.projector[0]
    assert torch.allclose(project(maps.mean((2, 3), keepdim=True)), project(maps).mean((2, 3), keepdim=True), atol=1e-6)


def test_the_final_layer_of_the_student_is_as_it_was_and_the_checkpoint_says_so() -> None:
    model = method(TimeStepConfig(t=10))
    before = model.student.network.fc.weight.clone()
    optimizer = torch.optim.SGD([p for part in model.named_parts().values() for p in part.parameters() if p.requires_grad], 0.1)
    model(model.prepare(tiny_batch(), 0, 0, 0))["loss"].backward()
    optimizer.step()
    weights, description = model.export(model.named_parts())
    assert torch.equal(weights["fc.weight"], before) and description["untrained"] == "the final layer"


@pytest.mark.parametrize(
    "losses", [{"l2": 1.0, "cosine": 0.5}, {"attention": 1000.0}, {"rkd": 1.0}, {"info_nce": 1.0}, {"l1": 10.0}]
)
@pytest.mark.parametrize("pooled", [True, False])
def test_every_loss_falls_in_training(losses: dict[str, float], pooled: bool) -> None:
    model = method(TimeStepConfig(t=100), losses=losses, pooled=pooled, resize=True)
    optimizer = torch.optim.Adam([p for part in model.named_parts().values() for p in part.parameters() if p.requires_grad], 0.02)
    batch = model.prepare(tiny_batch(images=6), 0, 0, 0)
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(batch)["loss"]
        values.append(loss.item())
        loss.backward()
        optimizer.step()
    assert values[-1] < 0.97 * values[0]


def test_features_from_the_disk_are_bit_for_bit_those_of_a_pass(tmp_path: Path) -> None:
    time, batch = TimeStepConfig(t=100), tiny_batch()
    plain = method(time)
    halves: list[Batch] = [{name: batch[name][part] for name in ("clean", "key", "label")} for part in (slice(0, 2), slice(2, 4))]
    expected = torch.cat([plain.teacher(half["clean"], torch.full((2,), 100), half)[0] for half in halves])
    cache = FeatureCache(tmp_path, "facts", batch["key"], plain.teacher.shapes)
    model = method(time, cache)
    model.teacher(halves[0]["clean"], torch.full((2,), 100), halves[0])
    asked = []
    model.teacher.features.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    for _ in range(2):
        assert torch.equal(model.teacher(batch["clean"], torch.full((4,), 100), batch)[0], expected)
    assert asked == [2]  # what was not there
    again = method(time, FeatureCache(tmp_path, "facts", batch["key"], plain.teacher.shapes))
    again.teacher.features.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    assert torch.equal(again.teacher(batch["clean"], torch.full((4,), 100), batch)[0], expected)
    assert 4 not in asked  # 24 for the statistics alone


def test_a_policy_learns_at_which_time_step_the_head_is_right_and_forgets_it_with_shuffled_labels() -> None:
    """A teacher whose feature holds the label at the third time step alone."""

    class Knows(torch.nn.Module):
        shapes = [(3, 1, 1)]  # noqa: RUF012

        def forward(self, images: Tensor, t: Tensor, batch: Batch) -> list[Tensor]:
            told = torch.nn.functional.one_hot(batch["told"], 3).float() * (t == 400)[:, None]
            return [4 * told[:, :, None, None]]

    for shuffled in (False, True):
        model = method(dataclasses.replace(POLICY, baseline="normalised", entropy=0.01))
        model.teacher = Knows()
        model.head = torch.nn.Sequential(torch.nn.Linear(3, 3))
        optimizer = torch.optim.Adam([*model.head.parameters(), *model.policy.parameters()], 0.02)
        for step in range(80):
            batch = model.prepare(tiny_batch(images=32, seed=step), 0, 0, step)
            told = batch["label"]
            if shuffled:
                told = told[torch.randperm(32, generator=torch.Generator().manual_seed(step))]
            batch |= {"told": told}
            logits = model.policy(2 * batch["clean"] - 1)
            actions = (logits.detach() + batch["gumbel"]).argmax(1)
            targets = model.teacher(batch["clean"], torch.tensor(model.steps)[actions], batch)
            optimizer.zero_grad()
            model._policy_loss(logits, actions, targets, batch, {}).backward()
            optimizer.step()
        share = model.policy(2 * tiny_batch(images=32, seed=99)["clean"] - 1).softmax(1)[:, 2].mean().item()
        assert share < 0.5 if shuffled else share > 0.9


# --- from the command line


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small diffusion model of Digits."""
    folder = tmp_path_factory.mktemp("repfusion")
    given = ("--model.channels", "[8, 16]", "--data.limit", 24, "--loop.epochs", 1, "--save_dir", folder)
    run_script("train.py", "-c", "configs/diffusion/Digits/ddpm.yaml", *given).check()
    return folder


SMALL = ("--data.limit", 24, "--bs", 12, "--loop.validate_every", 1, "--method.resize", "true")


def train(root: Path, config: str, run: str, *more: object) -> Done:
    return run_script("train.py", "-c", config, "--save_dir", root, "--run_id", run, *SMALL, *more)


def test_a_policy_is_trained_resumed_alike_and_drawn(root: Path) -> None:
    where, constant = root / "repfusion/Digits/ResNet20_hint", ("--optimizer.schedule", "constant")
    train(root, HINT, "whole", "--loop.epochs", 2, *constant).check()
    train(root, HINT, "parts", "--loop.epochs", 1, *constant).check()
    run_script("train.py", "-r", where / "parts", "--loop.epochs", 2, *SMALL, *constant).check()
    whole, parts = (load_checkpoint(where / run / "best.safetensors")[0] for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    last = metrics_of(where / "whole")[-1]
    assert {"train/distance", "train/policy_entropy", "train/head_cross_entropy", "train/time_step"} <= set(last)
    assert (where / "whole/samples.png").is_file()


def test_stage_1_to_a_fine_tuned_classifier_and_a_linear_probe(root: Path, tmp_path: Path) -> None:
    train(root, FIXED, "one", "--loop.epochs", 1).check()
    start = root / "repfusion/Digits/ResNet20_hint_fixed/one/best.safetensors"
    assert list((root / "cache").glob("*.npy"))
    clean = "configs/ind/Digits/ResNet20_clean.yaml"
    given = ("--save_dir", root, "--data.limit", 24, "--bs", 12, "--loop.epochs", 1, "--model.init_from", start)
    run_script("train.py", "-c", clean, *given, "--run_id", "all").check()
    run_script("train.py", "-c", clean, *given, "--run_id", "head", "--model.trained", "head").check()
    runs = root / "ind/Digits/ResNet20_clean"
    before, everything, head = (
        load_checkpoint(path)[0] for path in (start, runs / "all/best.safetensors", runs / "head/best.safetensors")
    )
    body = [name for name in before if not name.startswith("fc.")]
    assert all(torch.equal(before[name], head[name]) for name in body) and not torch.equal(before["fc.weight"], head["fc.weight"])
    assert not all(torch.equal(before[name], everything[name]) for name in body)
    asked = ("--runs", root, "--labels", "all,20", "--data.limit", 30, "--out", tmp_path)
    done = run_script("evaluation/linear_probe.py", "-r", start, *asked).check()
    text = done.out
    assert "the final layer is not trained yet" in done.err
    assert [line.split()[:4] for line in text.splitlines()[1:3]] == [["pooled", "-", "-", n] for n in ("all", "20")]
    steps = ("--steps", "0,999", "--inputs", "clean,noised")
    text = run_script("evaluation/linear_probe.py", "-r", "diffusion/Digits/ddpm", *asked, *steps).check().out
    assert len(text.splitlines()) == 10 and (tmp_path / "probe.png").is_file()
    rows, _ = read_json(tmp_path / "20" / RESULTS)
    names = ["pooled", *(f"branch, t {step}, {shown}" for shown in ("clean", "noised") for step in (0, 999))]
    assert [row.system for row in rows] == names and {row.n for row in rows} == {30}


def test_stage_1_needs_no_classes_and_its_student_learns_masks(tmp_path: Path) -> None:
    def run(config: str, *words: object) -> None:
        given = ("--save_dir", tmp_path, "--data.limit", 8, "-d", "cpu", "--loop.epochs", 1)
        run_script("train.py", "-c", f"configs/{config}.yaml", *given, *words).check()

    run("diffusion/Digits/ddpm", "--data.dataset", "DigitScenes", "--model.channels", "[8, 16]", "--loop.epochs", 0)
    run("repfusion/Digits/ResNet20_dense_fixed", "--data.dataset", "DigitScenes")
    start = ("--model.init_from", "repfusion/DigitScenes/ResNet20_dense_fixed")
    run("segmentation/DigitScenes/ResNet20", *start, "--model.width", 8)
    (checkpoint,) = (tmp_path / "segmentation/DigitScenes/ResNet20").glob("*/best.safetensors")
    assert read_description(checkpoint)["initial_weights"] is not None


def test_a_student_has_timms_names(root: Path) -> None:
    train(root, HINT, "timm", "--loop.epochs", 0, "--model.arch", "resnet18").check()
    path = root / "repfusion/Digits/resnet18_hint/timm/best.safetensors"
    network = timm.create_model("resnet18", num_classes=10)
    network.load_state_dict(load_checkpoint(path)[0], strict=True)
    assert torch.equal(timm.create_model("resnet18", num_classes=10, checkpoint_path=str(path)).conv1.weight, network.conv1.weight)


@pytest.mark.parametrize(("words", "message"), [
    (("--method.losses", "{l3: 1}"), "loss 'l3' in section 'method.losses': did you mean 'l"),
    (("--method.losses", "{l2: 0}"), "method.losses has no weight above 0"),
    (("--method.losses", "{soft_targets: 1}"), "method.losses.soft_targets: a diffusion model has no classes"),
    (("--method.layers", "[stage2, stage3]"), "one for one"),
    (("--method.pooled", "false", "--method.resize", "false"),
     "the student's feature stage3 has 8 x 8 places, the teacher's 16 x 16"),
    (("--method.teacher.kind", "classifier"), "method.time has no meaning with a classifier as teacher"),
    (("--method.time.grid", "2000"), "method.time.grid reaches beyond the 1000 time steps"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(root: Path, words: tuple[str, ...], message: str) -> None:
    done = train(root, HINT, "refused", *words)
    assert done.status == 2 and message in done.err, done.err
