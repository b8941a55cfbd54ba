"""ACIR's two stages through the training loop: trained weights, frozen weights, results."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.encoder import runtime
from shared.encoder.network import state_of
from shared.errors import Invalid, NotFound
from shared.training import train as loop
from shared.training.acir import Hashing, Reconstruction, Shape, rgb
from shared.training.configs import acir, acir_decoder
from shared.training.experiment import Batch, Optimiser, PrefixedCosine
from tests.training.small_set import Stripes, stripes

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = Shape(widths="xs", bits=16, side=112)


def stage1(**changes):
    experiment = acir.experiment("recommended", "xs")
    sampler = replace(experiment.sampler, classes=2, per_class=4)
    return replace(
        experiment, data=Stripes(n=32, side=32), method=Hashing(shape=SHAPE), sampler=sampler, epochs=1, **changes
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of stage 1, after one small epoch."""
    out = tmp_path_factory.mktemp("stage1") / "run"
    loop.train(stage1(), Path(), out, threads=1)
    return out / "model"


def test_the_first_stage_gives_a_model_with_vectors_and_codes(trained):
    encoder = runtime.load(trained, "onnx")
    encoded = encoder.encode(np.random.default_rng(0).random((3, 112, 112), np.float32))
    assert encoded.embeddings.shape == (3, SHAPE.network(0, decoder=False).dim)
    assert encoded.codes.shape == (3, 2)


@pytest.fixture(scope="module")
def second(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("stage2") / "run"
    experiment = acir.decoder(stage1(), trained / "weights.safetensors", epochs=1)
    experiment = replace(experiment, sampler=replace(experiment.sampler, batch=8))
    loop.train(experiment, Path(), out, threads=1)
    return out / "model"


def test_the_second_stage_leaves_all_but_the_decoder_bit_for_bit(trained, second):
    before, after = load_file(trained / "weights.safetensors"), load_file(second / "weights.safetensors")
    assert {name for name in before if "running_mean" in name}
    for name, value in before.items():
        if not name.startswith("classifier."):
            assert torch.equal(value, after[name]), name
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"decoder"}


def test_the_second_stage_paints_better_than_its_start(trained, second):
    images = torch.from_numpy(stripes(8, 112, 3).images).float() / 255
    errors = []
    for method in (Reconstruction(shape=SHAPE, weights=str(trained / "weights.safetensors")),) * 2:
        torch.manual_seed(0)
        model = method.build(stripes(8, 32, 0)).eval()
        if errors:
            model.network.load_state_dict(load_file(second / "weights.safetensors"), strict=False)
        with torch.no_grad():
            errors.append(method.embed(model, images).mean().item())
    assert errors[1] < errors[0]


def batch(n=8):
    data = stripes(n, 112, 0)
    images = torch.from_numpy(data.images).float() / 255
    labels = torch.from_numpy(data.labels)
    return Batch(views=(images,), clean=images, labels=labels, groups=labels, rows=torch.arange(n))


def test_images_that_are_to_be_painted_are_flipped_and_nothing_else():
    images = torch.rand(1, 112, 112).expand(40, -1, -1)
    torch.manual_seed(0)
    made = acir.decoder(stage1(), Path("w")).augmentation(images, 112)
    flips = [images[0], images[0].flip(0), images[0].flip(1), images[0].flip(0, 1)]
    assert all(any(torch.equal(one, flip) for flip in flips) for one in made)
    assert all(any(torch.equal(one, flip) for one in made) for flip in flips)


def test_the_frozen_part_stays_in_evaluation_mode_while_the_decoder_trains(trained):
    method = Reconstruction(shape=SHAPE, weights=str(trained / "weights.safetensors"))
    model = method.build(stripes(8, 32, 0)).train()
    assert model.decoder.training
    assert not model.network.stem.training
    buffers = {name: value.clone() for name, value in model.network.named_buffers()}
    loss, _ = method.step(model, batch())
    loss.backward()
    assert all(torch.equal(value, buffers[name]) for name, value in model.network.named_buffers())
    grown = {name.partition(".")[0] for name, p in model.network.named_parameters() if p.grad is not None}
    assert grown == {"decoder"}


def test_weights_of_another_shape_are_refused(trained, tmp_path):
    weights = str(trained / "weights.safetensors")
    for other in (replace(SHAPE, widths="s"), replace(SHAPE, darf=False), replace(SHAPE, bits=32)):
        with pytest.raises(Invalid, match="do not fit this shape"):
            Reconstruction(shape=other, weights=weights).build(stripes(8, 32, 0))
    partial = {k: v for k, v in load_file(weights).items() if not k.startswith("head.")}
    save_file(partial, tmp_path / "partial.safetensors")
    with pytest.raises(Invalid, match="do not fit this shape"):
        Reconstruction(shape=SHAPE, weights=str(tmp_path / "partial.safetensors")).build(stripes(8, 32, 0))
    (tmp_path / "none.safetensors").write_bytes(b"none")
    with pytest.raises(Invalid, match="not in safetensors format"):
        Reconstruction(shape=SHAPE, weights=str(tmp_path / "none.safetensors")).build(stripes(8, 32, 0))


def test_fingerprints_are_of_the_images_before_augmentation_or_after_it_as_the_method_says():
    one = batch()
    flipped = one._replace(clean=one.clean.flip(0))  # other images than in the views
    losses = {}
    for printed in ("clean", "augmented"):
        for name, given in (("same", one), ("flipped", flipped)):
            torch.manual_seed(0)
            method = Hashing(shape=SHAPE, objective="acir-released", printed=printed)
            losses[printed, name] = method.step(method.build(stripes(8, 32, 0)).eval(), given)[0].item()
    assert losses["augmented", "same"] == losses["augmented", "flipped"] == losses["clean", "same"]
    assert losses["clean", "flipped"] != losses["clean", "same"]


@pytest.mark.parametrize("objective", ["acir", "csq"])
def test_the_loss_is_the_objective_and_half_the_classifiers_cross_entropy(objective):
    torch.manual_seed(0)
    method = Hashing(shape=SHAPE, objective=objective)
    model = method.build(stripes(8, 32, 0)).eval()
    one = batch()
    total, parts = method.step(model, one)
    network = model.network
    _, hidden = network.head(network.features(rgb(one.pixels)).blended)
    classifying = torch.nn.functional.cross_entropy(network.classifier(hidden), one.labels)
    assert total.item() == pytest.approx((parts["hashing"] + 0.5 * classifying).item(), rel=1e-4)


def test_weighted_losses_weigh_rare_classes_more():
    data = stripes(12, 32, 0)
    data = data.where(np.flatnonzero((data.labels == 0) | (np.arange(12) < 4)))
    assert np.bincount(data.labels).tolist() == [4, 2]
    model = Hashing(shape=SHAPE, weighted=True).build(data)
    assert model.loss.weights.tolist() == pytest.approx([6 / (4 * 4), 6 / (4 * 2), 0, 0])
    assert set(Hashing(shape=SHAPE).build(data).loss.weights.tolist()) == {1.0}


def test_orthohash_is_no_end_to_end_method():
    with pytest.raises(Invalid, match="OrthoHash"):
        Hashing(shape=SHAPE, objective="orthohash").build(stripes(8, 32, 0))


def test_the_stem_and_the_rest_are_all_there_is_to_train():
    method = Hashing(shape=SHAPE)
    model = method.build(stripes(8, 32, 0))
    groups = {name: list(found) for name, found in method.groups(model).items()}
    assert sum(len(found) for found in groups.values()) == len(list(model.parameters()))
    assert {id(p) for p in groups["stem"]} == {id(p) for p in model.network.stem.parameters()}


@pytest.mark.slow
def test_a_stem_starts_from_a_backbones_weights(tmp_path):
    from shared.encoder.network import body

    resnet = body("resnet50")
    save_file(state_of(resnet), tmp_path / "resnet.safetensors")
    shape = Shape(widths="full", bits=16)
    model = Hashing(shape=shape, stem=f"resnet50 {tmp_path / 'resnet.safetensors'}").build(stripes(8, 32, 0))
    wanted = state_of(resnet)
    found = state_of(model.network.stem)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("variant", acir.VARIANTS)
def test_presets_follow_the_paper_the_code_and_us(variant):
    paper, released, ours = (acir.experiment(p, variant) for p in ("paper", "released-code", "recommended"))
    for one in (paper, released):
        assert (one.epochs, one.patience, one.sampler.batch) == (150, 50, 256)
        assert (one.optimiser.rates["stem"], one.optimiser.rates["rest"]) == (3e-4, 3e-4)
        assert (one.optimiser.betas, one.optimiser.weight_decay) == ((0.9, 0.95), 0.01)
        assert one.schedule == PrefixedCosine(cycle=150, warmup=10, first=1e-4, least=5e-6)
        assert one.clip is None
        assert (one.method.objective, one.method.weighted, one.method.alpha) == ("acir-released", True, 0.5)
    assert (paper.method.fingerprint, released.method.fingerprint) == (16, 32)
    assert (paper.method.printed, released.method.printed, ours.method.printed) == ("clean", "augmented", "clean")
    assert ours.clip == 1.0
    assert acir_decoder.experiment("recommended", variant).optimiser == Optimiser(
        rates={"decoder": 3e-4}, weight_decay=0.01
    )
    assert (ours.method.objective, ours.method.gamma, ours.method.weighted) == ("acir", 0.25, False)
    assert ours.side == (224 if variant == "full" else 112)
    assert acir_decoder.experiment("recommended", variant).method.shape == ours.method.shape
    assert len({paper.digest, released.digest, ours.digest}) == 3


def test_a_stage_without_the_other_says_so():
    with pytest.raises(TypeError, match="stage 1"):
        acir.decoder(acir.decoder(stage1(), Path("w")), Path("w"))
    with pytest.raises(NotFound, match="no file with the weights of stage 1"):
        Reconstruction(shape=SHAPE, weights="nowhere.safetensors").build(stripes(8, 32, 0))
