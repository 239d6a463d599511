"""Parameter groups, the schedule of the learning rate, and the moving average."""

import pytest
import torch
from conftest import make_tiny_model
from torch.testing import assert_close

from owl_swin.training.config import OptimConfig
from owl_swin.training.optim import average_of, build_optimizer, freeze, part_of, set_learning_rate

pytestmark = pytest.mark.numeric


@pytest.fixture
def model():
    return make_tiny_model().requires_grad_(True)


def names_by_group(model, optimizer):
    """(peak rate, decay) → names of the parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        (group["peak_lr"], group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in optimizer.param_groups
    }


@pytest.mark.parametrize(
    "name, part",
    [
        ("image_encoder.patch_embed.weight", "image"),
        ("text_encoder.tower.ln_final.weight", "text"),
        ("fusion.mix.weight", "fusion"),
        ("head_blocks.0.expand.weight", "heads"),
        ("masks.mix.weight", "masks"),
        ("image_projection.weight", "pool"),
        ("alignment_log_scale", "pool"),
    ],
)
def test_part_of_a_parameter(name, part):
    assert part_of(name) == part


def test_every_trained_parameter_is_in_one_group_with_the_rate_of_its_part(model):
    optimizer = build_optimizer(model, OptimConfig(image_lr=1e-3, text_lr=2e-3, heads_lr=3e-3, weight_decay=0.1))
    groups = names_by_group(model, optimizer)
    assert set(groups) == {(rate, decay) for rate in (1e-3, 2e-3, 3e-3) for decay in (0.1, 0.0)}
    everything = [name for names in groups.values() for name in names]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())
    rates = {"image": 1e-3, "text": 2e-3, "heads": 3e-3, "fusion": 3e-3, "pool": 3e-3}
    assert all(rate == rates[part_of(name)] for (rate, _), names in groups.items() for name in names)


def test_matrices_decay_and_biases_norms_tables_and_embeddings_do_not(model):
    config = OptimConfig(image_lr=1e-3, text_lr=2e-3, heads_lr=3e-3, weight_decay=0.1)
    groups = names_by_group(model, build_optimizer(model, config))
    decayed = set().union(*(names for (_, decay), names in groups.items() if decay))
    assert "fusion.mix.weight" in decayed and "class_head.embed.weight" in decayed
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "bias_table" in name or "embedding" in name:
            assert name not in decayed
        else:
            assert name in decayed
    assert any("bias_table" in name for name, _ in model.named_parameters())  # so the line above says something


def test_a_rate_of_zero_freezes_its_part(model):
    optimizer = build_optimizer(model, OptimConfig(image_lr=0.0, text_lr=0.0, heads_lr=1e-3))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (part_of(name) in ("heads", "fusion", "pool"))
    names = [name for group in names_by_group(model, optimizer).values() for name in group]
    assert {part_of(name) for name in names} == {"heads", "fusion", "pool"}


def test_what_embeds_whole_pictures_has_a_rate_of_its_own(model):
    optimizer = build_optimizer(model, OptimConfig(image_lr=0.0, heads_lr=0.0, pool_lr=1e-3))
    names = [name for group in names_by_group(model, optimizer).values() for name in group]
    assert sorted(names) == ["alignment_log_scale", "image_projection.bias", "image_projection.weight"]
    assert all(p.requires_grad == (name in names) for name, p in model.named_parameters())
    assert {group["peak_lr"] for group in optimizer.param_groups} == {1e-3}
    build_optimizer(model, OptimConfig(pool_lr=0.0))
    assert not model.image_projection.weight.requires_grad and model.class_head.embed.weight.requires_grad


def test_heads_alone_learn_where_the_patches_that_they_read_are_frozen(model):
    optimizer = build_optimizer(model, OptimConfig(image_lr=0.0, fusion_lr=0.0, heads_lr=1e-3, pool_lr=0.0))
    names = [name for group in names_by_group(model, optimizer).values() for name in group]
    assert {name.partition(".")[0] for name in names} == {"class_head", "box_head", "objectness_head"}
    assert all(p.requires_grad == (name in names) for name, p in model.named_parameters())


def test_parts_train_again_when_their_rate_is_not_zero(model):
    build_optimizer(model, OptimConfig(image_lr=0.0))
    build_optimizer(model, OptimConfig(image_lr=1e-3, text_lr=1e-3))
    assert all(parameter.requires_grad for parameter in model.parameters())


# Warm-up of 10 steps times a cosine over 100 steps that ends at a tenth:
# [min(1, (s + 1) / 10) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * s / 100))) for s in (0, 4, 9, 50, 99)]
@pytest.mark.parametrize("step, factor", [(0, 0.1), (4, 0.498226), (9, 0.982132), (50, 0.55), (99, 0.100222)])
def test_schedule(model, step, factor):
    config = OptimConfig(image_lr=1e-3, heads_lr=2e-3, warmup_steps=10, final_lr=0.1)
    optimizer = build_optimizer(model, config)
    assert set_learning_rate(optimizer, config, step, 100) == pytest.approx(factor, abs=1e-6)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-3 * factor, 2e-3 * factor], rel=1e-5)


def test_schedule_without_warm_up_starts_at_the_peak_and_stays_at_the_end(model):
    config = OptimConfig(warmup_steps=0, final_lr=0.01)
    optimizer = build_optimizer(model, config)
    assert set_learning_rate(optimizer, config, 0, 10) == 1.0
    assert set_learning_rate(optimizer, config, 10, 10) == pytest.approx(0.01)
    assert set_learning_rate(optimizer, config, 15, 10) == pytest.approx(0.01)


@pytest.mark.parametrize("step, decay", [(0, 0.0), (8, 0.5), (10_000, 0.9)])
def test_average_moves_by_what_the_decay_leaves(model, step, decay):
    freeze(model, OptimConfig(image_lr=1e-3, text_lr=0.0))
    with torch.no_grad():
        model.fusion.mix.weight.zero_()
    average = average_of(model, 0.9)
    average.n_averaged.fill_(step)
    frozen = model.text_encoder.tower.ln_final.weight.clone()
    with torch.no_grad():
        model.fusion.mix.weight.fill_(2.0)
    average.update_parameters(model)
    mean = average.module
    assert_close(mean.fusion.mix.weight, torch.full_like(mean.fusion.mix.weight, 2 * (1 - decay)))
    assert torch.equal(mean.text_encoder.tower.ln_final.weight, frozen)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert int(average.n_averaged) == step + 1


def test_without_a_decay_the_average_is_the_model_to_the_bit(model):
    average = average_of(model, 0.0)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(model)
    assert all(torch.equal(p, average.module.state_dict()[name]) for name, p in model.named_parameters())
