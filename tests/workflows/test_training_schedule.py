"""The rate of every step, and who learns how fast."""

import dataclasses

import pytest
import torch

from pipeline.errors import SpecError
from pipeline.network.deeplab import DeepLab, build_network
from pipeline.network.spec import NetworkSpec
from workflows.training_schedule import (
    OptimizerSpec,
    PhaseSpec,
    ScheduleSpec,
    build_optimizer,
    set_rate,
    set_training_mode,
)

TINY = NetworkSpec(
    n_classes=2,
    backbone_width=0.25,
    atrous_rates=(1,),
    image_pooling="off",
    aspp_channels=8,
    low_level_channels=8,
    decoder_channels=8,
)


@pytest.fixture
def network() -> DeepLab:
    return build_network(TINY)


def test_poly_is_that_of_the_paper() -> None:
    schedule = ScheduleSpec(n_steps=100, learning_rate=2.0)
    assert [schedule.rate_at(step) for step in (0, 50, 99)] == pytest.approx([2.0, 2 * 0.5**0.9, 2 * 0.01**0.9])


def test_step_falls_to_a_tenth_at_each_third_as_v1_did() -> None:
    schedule = ScheduleSpec(n_steps=6000, learning_rate=1e-3, policy="step")
    rates = [schedule.rate_at(step) for step in (0, 1999, 2000, 3999, 4000, 5999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_a_constant_rate_stays_and_warm_up_rises_to_it() -> None:
    schedule = ScheduleSpec(n_steps=10, learning_rate=1.0, policy="constant", warmup_steps=3)
    assert [schedule.rate_at(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_every_phase_begins_its_own_decay() -> None:
    schedule = ScheduleSpec(n_steps=90, learning_rate=1.0, phases=(PhaseSpec(share=2), PhaseSpec(share=1, learning_rate=0.1)))
    assert schedule.phase_ends == (60, 90)
    assert [schedule.phase_at(step) for step in (0, 59, 60, 89)] == [0, 0, 1, 1]
    assert schedule.rate_at(60) == pytest.approx(0.1)
    assert schedule.rate_at(75) == pytest.approx(0.1 * 0.5**0.9)


def test_validation_comes_ten_times_and_at_the_end() -> None:
    schedule = ScheduleSpec(n_steps=105)
    assert [step for step in range(1, 106) if schedule.validates_after(step)] == [*range(10, 101, 10), 105]


def test_every_trained_parameter_is_in_one_group(network: DeepLab) -> None:
    optimizer = build_optimizer(network, OptimizerSpec(), normalisation="trained")
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_only_kernels_decay_and_the_backbone_is_slower(network: DeepLab) -> None:
    spec = OptimizerSpec(backbone_factor=0.1, bias_factor=2.0, weight_decay=0.5)
    optimizer = build_optimizer(network, spec, normalisation="trained")
    set_rate(optimizer, 3.0)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    stem, classifier = network.backbone.stem, network.classifier
    found = [
        (of[id(parameter)]["lr"], of[id(parameter)]["weight_decay"])
        for parameter in (stem.conv.weight, stem.norm.weight, stem.norm.bias, classifier.weight, classifier.bias)
    ]
    expected = [(0.3, 0.5), (0.3, 0.0), (0.3, 0.0), (3.0, 0.5), (6.0, 0.0)]
    assert [list(one) for one in found] == [pytest.approx(list(one)) for one in expected]


def test_a_backbone_with_factor_0_is_left_as_it_is(network: DeepLab) -> None:
    optimizer = build_optimizer(network, OptimizerSpec(backbone_factor=0), normalisation="trained")
    assert not any(p.requires_grad for p in network.backbone.parameters())
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not grouped & {id(p) for p in network.backbone.parameters()}


def test_frozen_normalisations_keep_statistics_and_factors(network: DeepLab) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items() if "norm" in name}
    optimizer = build_optimizer(network, OptimizerSpec(name="sgd"), normalisation="frozen")
    set_rate(optimizer, 0.1)
    kernel = network.classifier.weight.clone()
    set_training_mode(network, OptimizerSpec(), normalisation="frozen")
    network(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(network.classifier.weight, kernel)
    assert before
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_frozen_layers_are_left_as_they_are(network: DeepLab) -> None:
    spec = OptimizerSpec(frozen=("backbone.stem", "backbone.blocks.0"))
    optimizer = build_optimizer(network, spec, normalisation="trained")
    set_rate(optimizer, 0.1)
    set_training_mode(network, spec, normalisation="trained")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith(("backbone.stem.", "backbone.blocks.0."))]
    assert {"classifier.weight", "backbone.blocks.1.depthwise.norm.running_mean"} <= changed


def test_a_frozen_layer_that_does_not_exist_is_refused(network: DeepLab) -> None:
    with pytest.raises(SpecError, match=r"'backbone\.stam'; did you mean 'backbone\.stem'"):
        build_optimizer(network, OptimizerSpec(frozen=("backbone.stam",)), normalisation="trained")


def test_trained_normalisations_follow_the_batches(network: DeepLab) -> None:
    build_optimizer(network, OptimizerSpec(), normalisation="trained")
    before = network.backbone.stem.norm.running_mean.clone()
    set_training_mode(network, OptimizerSpec(), normalisation="trained")
    network(torch.randn(2, 3, 32, 32))
    assert not torch.equal(network.backbone.stem.norm.running_mean, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScheduleSpec(n_steps=0),
        lambda: ScheduleSpec(batch=1),
        lambda: ScheduleSpec(accumulate=0),
        lambda: ScheduleSpec(learning_rate=0),
        lambda: ScheduleSpec(learning_rate=float("nan")),
        lambda: ScheduleSpec(policy="cosine"),
        lambda: ScheduleSpec(average=1.0),
        lambda: ScheduleSpec(phases=()),
        lambda: ScheduleSpec(drops=(1.5,)),
        lambda: ScheduleSpec(patience=0),
        lambda: PhaseSpec(share=0),
        lambda: PhaseSpec(learning_rate=-1),
        lambda: PhaseSpec(normalisation="off"),
        lambda: OptimizerSpec(name="lion"),
        lambda: OptimizerSpec(weight_decay=-1),
        lambda: OptimizerSpec(momentum=1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make) -> None:
    with pytest.raises(SpecError):
        make()


def test_nothing_left_to_train_is_refused(network: DeepLab) -> None:
    frozen = dataclasses.replace(OptimizerSpec(), backbone_factor=0)
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=False)
    network.decoder, network.aspp, network.classifier = None, None, torch.nn.Identity()
    network.context = torch.nn.Identity()
    with pytest.raises(SpecError, match="nothing is left to train"):
        build_optimizer(network, frozen, normalisation="frozen")
