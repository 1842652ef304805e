"""The loop: the same seed, a run that was interrupted, validation, and what is held out."""

from __future__ import annotations

import numpy as np
import pytest


def _plan(**settings):
    from stpredict._training import TrainOptions

    return TrainOptions(
        **({"max_epochs": 2, "batch_size": 4, "device": "cpu", "precision": "32", "progress": False} | settings)
    )


def _state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def _equal(one, other) -> bool:
    return all(bool((one[key] == other[key]).all()) for key in one)


@pytest.fixture
def sections(colour_section):
    return [colour_section(0), colour_section(1)]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(build, sections):
    from stpredict._training import fit

    models = [build("PixNet") for _ in range(3)]
    histories = [fit(m, sections, [], _plan(max_epochs=1, seed=s)) for m, s in zip(models, (0, 0, 1), strict=True)]
    assert _equal(_state(models[0]), _state(models[1]))
    assert not _equal(_state(models[0]), _state(models[2]))
    assert histories[0].equals(histories[1])
    assert list(histories[0].columns) == ["epoch", "train_loss", "lr"]


@pytest.mark.slow
def test_a_resumed_run_ends_where_the_whole_one_does(build, sections, tmp_path, monkeypatch):
    from stpredict import _training

    whole = build("PixNet")
    history = _training.fit(whole, sections, [sections[0]], _plan(max_epochs=2, checkpoint_dir=tmp_path / "whole"))

    broken = build("PixNet")
    end = _training.FitModule.on_train_epoch_end

    def interrupt(task):
        end(task)
        if task.current_epoch == 1:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(_training.FitModule, "on_train_epoch_end", interrupt)
        with pytest.raises(InterruptedError):
            _training.fit(broken, sections, [sections[0]], _plan(max_epochs=2, checkpoint_dir=tmp_path / "broken"))
    resumed = build("PixNet")
    plan = _plan(max_epochs=2, checkpoint_dir=tmp_path / "broken", resume=True)
    again = _training.fit(resumed, sections, [sections[0]], plan)
    assert _equal(_state(whole), _state(resumed))
    assert history["epoch"].tolist() == again["epoch"].tolist() == [0, 1]
    np.testing.assert_array_equal(history["train_loss"], again["train_loss"])
    assert (tmp_path / "broken" / "log" / "metrics.csv").is_file()


def test_training_leaves_torchs_deterministic_mode_as_it_was(build, sections):
    import torch

    from stpredict._training import fit

    assert not torch.are_deterministic_algorithms_enabled()
    fit(build("Mean"), sections, [], _plan())
    fit(build("STNet"), sections, [], _plan(max_epochs=1))
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_nothing_in_training_reads_memory_that_was_never_written(build, sections, monkeypatch):
    """Training fills no new memory: where it is filled, with NaN, the result is the same to the bit."""
    import torch

    from stpredict import _training

    plain = build("PixNet")
    _training.fit(plain, sections, [], _plan(max_epochs=1))
    filled = build("PixNet")
    step = _training.FitModule.training_step

    def watched(task, *arguments):
        torch.utils.deterministic.fill_uninitialized_memory = True
        return step(task, *arguments)

    monkeypatch.setattr(_training.FitModule, "training_step", watched)
    _training.fit(filled, sections, [], _plan(max_epochs=1))
    assert _equal(_state(plain), _state(filled))


def test_training_on_the_cpu_beside_a_card_does_not_warn(build, sections, monkeypatch):
    from lightning.pytorch.accelerators import CUDAAccelerator

    from stpredict._training import fit

    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    assert len(fit(build("STNet"), sections, [], _plan(max_epochs=1))) == 1  # warnings are errors here


def test_resume_without_a_checkpoint_is_refused(build, sections, tmp_path):
    from stpredict._training import fit

    with pytest.raises(FileNotFoundError, match=r"there is no last.ckpt in checkpoint_dir="):
        fit(build("PixNet"), sections, [], _plan(checkpoint_dir=tmp_path, resume=True))


@pytest.mark.slow
def test_the_best_weights_are_kept_and_patience_ends_it(build, sections, monkeypatch):
    from dataclasses import replace

    from stpredict import _training

    model = build("PixNet")
    model.recipe = replace(model.recipe, patience=2)
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.6, 2.7])
    seen = []

    def step(task, batch, _):
        pass

    def log(task):
        task.log("val_loss", next(losses))
        seen.append(_state(task.model))

    monkeypatch.setattr(_training.FitModule, "validation_step", step)
    monkeypatch.setattr(_training.FitModule, "on_validation_epoch_end", log, raising=False)
    history = _training.fit(model, sections, [sections[0]], _plan(max_epochs=6))
    assert len(history) == 4  # two epochs after the best one

    def learnt(state):  # the context is fitted after the loop
        return {key: value for key, value in state.items() if not key.startswith("context_map.")}

    assert _equal(learnt(_state(model)), learnt(seen[1]))
    assert not _equal(learnt(_state(model)), learnt(seen[3]))


@pytest.mark.parametrize(("n_samples", "epochs", "patience"), [
    (85, 20, 10),  # ten steps of eight windows an epoch
    (54, 34, 17),  # six
    (10, 40, 20),  # five, of two windows
    (2, 100, 50),  # two, of one
    (100_000, 20, 10),
])  # fmt: skip
def test_few_windows_make_more_epochs(n_samples, epochs, patience):
    from stpredict._training._module import batch_size, long_enough
    from stpredict.models import Recipe

    recipe = Recipe(max_epochs=20, batch_size=8, patience=10, min_steps=200)
    longer = long_enough(recipe, n_samples)
    assert (longer.max_epochs, longer.patience) == (epochs, patience)
    steps = n_samples // batch_size(recipe, n_samples)
    assert longer.max_epochs * steps >= 200 > (longer.max_epochs - 1) * steps or epochs == 20
    assert long_enough(Recipe(max_epochs=3), n_samples) == Recipe(max_epochs=3)


@pytest.mark.parametrize("asked", [None, 2])
def test_the_steps_of_the_recipe_are_taken_unless_epochs_are_asked_for(build, sections, asked):
    from dataclasses import replace

    from stpredict import _training

    model = build("PixNet")
    model.recipe = replace(model.recipe, max_epochs=1, min_steps=9)
    history = _training.fit(model, sections, [], _plan(max_epochs=asked))
    n_windows = len(model.samples(sections, train=True))
    assert len(history) == (asked or -(-9 // (n_windows // min(4, n_windows // 4))))


def test_reliability_is_the_correlation_on_validation_sections(build, sections, colour_section):
    from stpredict import metrics
    from stpredict._inference import RuntimeOptions, predict
    from stpredict._training import fit

    model, val = build("Ridge"), colour_section(3)
    fit(model, sections, [val], _plan())
    values, _ = predict(
        model,
        val,
        list(model.genes),
        runtime=RuntimeOptions(device="cpu", precision="32", progress=False).resolve(model.output),
    )
    np.testing.assert_allclose(list(model.card.val_pcc.values()), metrics.pcc(values, val.expression), rtol=1e-5)
    assert list(model.card.val_pcc) == ["red", "green", "blue"]


def test_a_constant_prediction_has_no_reliability(build, sections, colour_section):
    from stpredict._training import fit

    model = build("Mean")
    fit(model, sections, [colour_section(3)], _plan())
    assert set(model.card.val_pcc.values()) == {None}


def test_held_out_shapes_are_blocks_and_a_partition(colour_section):
    from stpredict._training import hold_out_places

    section = colour_section(0)
    (kept,), (held,) = hold_out_places([section], share=0.3, seed=0)
    assert sorted([*kept.ids, *held.ids]) == list(range(24))
    assert 0.2 <= held.n_shapes / 24 <= 0.5


def test_the_rate_rises_and_falls():
    from stpredict._training._module import _rate

    rates = [_rate(step, 100, 0.1) for step in range(101)]
    assert rates[9] == 1.0
    assert rates[0] == pytest.approx(0.1)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[100] == pytest.approx(0.01)


def test_a_frozen_encoder_does_not_move(build, sections):
    from dataclasses import replace

    from stpredict._training import fit

    model = build("PixNet")
    model.recipe = replace(model.recipe, encoder_lr=0.0)
    before = _state(model.encoder)
    fit(model, sections, [], _plan(max_epochs=1))
    assert _equal(before, _state(model.encoder))


def test_nothing_to_train_on_is_said(build):
    from stpredict._training import fit

    with pytest.raises(ValueError, match="there is nothing to train on"):
        fit(build("Mean"), [], [], _plan())


def test_pretrained_batch_norm_stays_in_eval_mode_while_training(build, sections):
    """Its statistics are those of ImageNet; a few windows of one patient must not replace them."""
    from stpredict._training import fit

    model = build("PixNet")
    before = {key: value.clone() for key, value in model.encoder.named_buffers()}
    fit(model, sections, [sections[0]], _plan(max_epochs=2))
    assert _equal(before, dict(model.encoder.named_buffers()))


def test_several_processes_share_the_windows_of_one():
    from stpredict._training._module import EpochSampler

    alone = list(EpochSampler(23, 4))
    assert sorted(alone) == list(range(92, 115))
    parts = [list(EpochSampler(23, 4, rank=rank, world=3)) for rank in range(3)]
    assert [len(part) for part in parts] == [7, 7, 7]
    together = [index for step in zip(*parts, strict=True) for index in step]
    assert together == alone[:21]  # in the same batches, and none twice


@pytest.mark.slow
def test_two_processes_end_where_one_does(build, sections):
    """Exactly, for a model whose loss is a sum over shapes and that has nothing else that sees a batch."""
    from stpredict._training import fit

    models = [build("STNet") for _ in range(2)]
    one, two = (fit(m, sections, [sections[0]], _plan(max_epochs=3, devices=n)) for n, m in enumerate(models, start=1))
    np.testing.assert_allclose(two["train_loss"], one["train_loss"] / 2, rtol=1e-3)  # a sum over half the shapes
    np.testing.assert_allclose(two["val_loss"], one["val_loss"], rtol=1e-4)
    np.testing.assert_array_equal(two["lr"], one["lr"])
    weights = [model.linear.weight.detach().numpy() for model in models]
    np.testing.assert_allclose(weights[1], weights[0], atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("encoder_lr", [0.0, 1e-4])
def test_two_processes_train_as_one_does_within_what_seeds_differ(build, sections, encoder_lr):
    """Batch norms and the correlation in the loss of PixNet see the half batch of their process."""
    from dataclasses import replace

    from stpredict._training import fit

    def trained(**settings):
        model = build("PixNet")
        model.recipe = replace(model.recipe, encoder_lr=encoder_lr)
        return fit(model, sections, [sections[0]], _plan(max_epochs=3, **settings))

    alone, two = [trained(seed=seed) for seed in range(5)], trained(devices=2)  # three may happen to be alike
    assert two["epoch"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(two["lr"], alone[0]["lr"])
    for loss in ("train_loss", "val_loss"):
        spread = np.ptp([history[loss] for history in alone], axis=0)
        assert (np.abs(two[loss] - alone[0][loss]) <= spread).all()


def test_batches_come_in_order_and_are_made_in_the_number_format_of_the_network():
    import torch

    from stpredict._training._module import Batches

    class Named:
        def __getitems__(self, indices):
            return [(index, torch.is_autocast_enabled("cpu")) for index in indices]

        def collate(self, samples):
            return samples

    indices = [[3, 1], [2], [0, 4]]
    for precision, half in (("bf16-mixed", True), ("32-true", False)):
        batches = Batches(Named(), indices, precision=precision, device=torch.device("cpu"))
        assert len(batches) == 3
        for _ in range(2):
            assert list(batches) == [[(i, half) for i in batch] for batch in indices]
