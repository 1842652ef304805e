"""STNet: image network on the patch around each shape, with a linear output layer.

Source: "Integrating spatial gene expression and breast tumour morphology via deep learning" (He et al., Nature
Biomedical Engineering 2020) and its released code. As published: the last layer starts with weights of zero and the
mean training label as bias; the loss is the squared error summed over the batch and divided by the number of genes; in
training each patch is flipped either way and turned by a quarter, each with probability 1/2, which makes the 8
symmetries of the square equally likely; a prediction is the mean over all 8. We differ in these points:

- AdamW with warm-up and a cosine in place of SGD (momentum .9, learning rate 1e-6). The sum over a batch of 32 makes
  the gradient 32 times that of the mean squared error, so their rate is 3.2e-5 for the mean. AdamW divides a gradient
  by its own size: neither the sum nor the number of genes changes its step, and the rates here are those of a mean.
  Only the clipping of gradients sees the sum; its limit is 32, which is 1 for the mean of a full batch;
- genes, labels and the epoch come from the training sections by the protocol (the code: the 250 genes with the highest
  mean count of all patients; log((1 + count) / (n_genes + total)); the epoch by inner cross-validation);
- colours are normalised as the encoder was trained (the code: mean and deviation of about 12 training batches), and
  batch norm keeps its pretrained statistics while its weights are trained (the code: batch statistics);
- a patch that reaches over the border of the image is filled with white (the code drops the spot);
- the small configuration keeps the encoder frozen and standardises its features on the training sections; all 8
  symmetries of a patch are encoded, once.

With `loss="strank"` it learns how the spots of a section compare, by the list-wise loss of STRank (arXiv 2512.06612),
in place of their values: on counts per 10,000, for the spots of a section in a batch, divided by the mean rate (the
paper: on counts, with the depth of a spot in the model, which differs in how much deep spots weigh). Since the loss
knows no unit, the predictions of a gene are brought to the target's, after training, by the line through the training
spots.

The head is linear, so the mean of the 8 features gives the mean of the 8 predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from stpredict._section import Section
from stpredict.models._base import Model, Recipe, constructor, predict_batch
from stpredict.models._config import resolve_config
from stpredict.models._fields import EncoderConfig, PatchConfig
from stpredict.models._info import ModelInfo
from stpredict.models._patches import PatchEncoder
from stpredict.models._samples import Batch, PatchSamples, Samples, TurnedSamples
from stpredict.models._scale import measured_expression
from stpredict.nn.losses import strank

ROWS = 64  # patches that are seen together after training


@dataclass(frozen=True)
class STNetConfig(EncoderConfig, PatchConfig):
    """Every choice of an STNet. Each value that the paper does not give carries its reason.

    Parameters
    ----------
    genes : tuple[str, ...]
        Ordered panel.
    mpp : float, default 2.0
        Micrometres per pixel.
    patch_px : int, default 128
        Side of the patch around each shape in pixels.
    encoder, taps, encoder_kwargs, encoder_mean, encoder_std
        See `stpredict.nn.EncoderSpec`; the mean of the last tap over the patch is what a classifier would see.
    frozen : bool, default True
        Whether the encoder stays as it is; its features are then computed once for every patch and symmetry.
    symmetries : int, default 8
        1: the patch as it is; 4: its quarter turns; 8: flips too. Drawn from in training, averaged at prediction.
    loss : {"squared", "strank"}, default "squared"
        "squared": the paper's; "strank": of the comparison of a section's spots, for the target log1p_cp10k.
    recipe : Recipe, optional
        See `Recipe`.

    Examples
    --------
    >>> config = stp.models.STNetConfig(genes=tuple(genes), mpp=2.0)
    >>> stp.models.STNet(config=config).mpp
    2.0
    """

    mpp: float = 2.0  # the paper: 224 px at full resolution; 256 um are better than 128 (benchmarks/README.md)
    frozen: bool = True  # hundreds of spots; the paper trains all layers, on 23 patients
    symmetries: int = 8  # the paper
    loss: Literal["squared", "strank"] = "squared"
    recipe: Recipe = field(
        # epochs and batch: the paper
        default_factory=lambda: Recipe(
            max_epochs=50, batch_size=32, lr=1e-3, encoder_lr=0.0, weight_decay=1e-2, gradient_clip=32.0
        )
    )


PUBLISHED: Mapping[str, Any] = {
    "mpp": 0.69,  # full resolution is not given in um; that of her2st, scanned from arrays of the same kind
    "patch_px": 224,
    "encoder": "densenet121",
    "frozen": False,
    "recipe": Recipe(  # the rate is ours, see the module's head
        max_epochs=50, batch_size=32, lr=1e-4, encoder_lr=1e-4, weight_decay=0.0, gradient_clip=32.0
    ),
}


class STNet(Model):
    """Expression inside shapes, each from the patch around it: a linear layer on an image network.

    Parameters
    ----------
    genes : Sequence[str], default ()
        The ordered panel.
    encoder_weights : str | Path, optional
        A local .safetensors state dict of timm; "timm" for the weights timm fetches for the name; None: random.
    feature_cache : str | Path, optional
        A folder where features of a frozen encoder are kept between processes; None: in memory.
    mpp : float, optional
        Overrides the configuration's.
    loss : {"squared", "strank"}, optional
        Overrides the configuration's.
    config : str | STNetConfig, default "small"
        "small" (frozen MobileNetV2), "published" (DenseNet-121, all layers trained, for a GPU), or an `STNetConfig`.
    seed : int, optional
        Draws the first weights; None: 0, or the seed that `stp.tl.benchmark` is at.

    Raises
    ------
    ValueError
        For an empty or duplicated panel, an unknown configuration, a number of symmetries other than 1, 4 or 8, and an
        encoder that is to be trained at a rate of 0.

    References
    ----------
    The head of the module; `stpredict.models.cite` gives the entry of the paper.

    Examples
    --------
    >>> model = stp.models.STNet(genes, mpp=2.0)
    >>> model.context
    'shape'
    """

    output: ClassVar = "spots"
    context = "shape"
    config_class: ClassVar = STNetConfig
    config: STNetConfig
    info: ClassVar = ModelInfo(
        name="STNet",
        task="image network, last layer replaced; the mean over 8 symmetries of the patch",
        title="Integrating spatial gene expression and breast tumour morphology via deep learning",
        authors="He et al.",
        venue="Nature Biomedical Engineering",
        year=2020,
        code="https://github.com/bryanhe/ST-Net",
        encoder="densenet121",
    )

    @constructor
    def __init__(
        self,
        genes: Sequence[str] = (),
        *,
        encoder_weights: str | Path | None = None,
        feature_cache: str | Path | None = None,
        mpp: float | None = None,
        loss: Literal["squared", "strank"] | None = None,
        config: str | STNetConfig = "small",
        seed: int | None = None,
    ) -> None:
        super().__init__(_config(config, genes, mpp, loss))
        c = self.config
        self.encoder = PatchEncoder(
            c.encoder_spec, weights=encoder_weights, kind="averaged", frozen=c.frozen, folder=feature_cache,
            patch_px=c.patch_px,
        )  # fmt: skip
        self.linear = nn.Linear(self.encoder.width, len(c.genes))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def prepare(self, sections: Sequence[Section]) -> None:
        """Start the last layer at zero weights and the mean label of the training spots; scale the features.

        Of a loaded model both stay.
        """
        if self.card is not None:
            return  # a trained one is trained on
        mean = measured_expression(sections).mean(axis=0)
        self.linear.weight.zero_()
        self.linear.bias.copy_(torch.from_numpy(mean))
        self.encoder.fit(sections, patch_px=self.config.patch_px)

    def samples(self, sections: Sequence[Section], *, train: bool, seed: int = 0) -> Samples:
        """The patch around every shape; in training in one of its symmetries."""
        patches = PatchSamples(sections, patch_px=self.config.patch_px)
        return TurnedSamples(patches, symmetries=self.config.symmetries, seed=seed) if train else patches

    def query(self, genes: Sequence[str]) -> Float[Tensor, "g d"]:
        """The rows of the last layer for these genes, the bias last."""
        rows = torch.cat([self.linear.weight, self.linear.bias[:, None]], dim=1)
        return rows[self.gene_index(genes)]

    def latent(self, batch: Batch) -> Float[Tensor, "n d"]:
        """Features of every patch: in training as it is, else the mean over its symmetries."""
        if self.training:
            return self.encoder(batch.image)
        return torch.stack([self.encoder(_turned(batch.image, k)) for k in range(self.config.symmetries)]).mean(0)

    def head(self, latent: Float[Tensor, "n d"], query: Float[Tensor, "g q"]) -> Float[Tensor, "n g"]:
        """The last layer."""
        return latent @ query[:, :-1].T + query[:, -1]

    def loss(self, batch: Batch, query: Tensor) -> Tensor:
        """The squared error, summed over batch and genes, divided by the number of genes; or that of STRank.

        Raises
        ------
        ValueError
            For STRank of targets below 0, which are no log1p of a rate.
        """
        if self.config.loss == "strank":
            return self._ranked(predict_batch(self, batch, query), batch)
        return (predict_batch(self, batch, query) - batch.measured).square().sum() / len(batch.genes)

    def _ranked(self, pred: Tensor, batch: Batch) -> Tensor:
        """The loss of STRank of every section's shapes in a batch, weighing by their number."""
        if bool((batch.measured < 0).any()):
            raise ValueError(
                'loss="strank" compares rates, and the target has values below 0: train with target="log1p_cp10k", or '
                'with loss="squared".'
            )
        rate = torch.expm1(batch.measured)
        of = torch.from_numpy(batch.rows[:, 0]).to(pred.device)
        parts = [(of == section).nonzero()[:, 0] for section in of.unique()]
        each = torch.stack([len(rows) * strank(pred[rows], rate[rows]) for rows in parts])
        return each.sum() / len(pred) / rate.mean().clamp_min(1e-6)

    @torch.no_grad()
    def finish(self, sections: Sequence[Section]) -> None:
        """After STRank: of every gene the line that brings its scores to the target's unit on the training spots."""
        if self.config.loss != "strank":
            return
        training = self.training
        self.eval()
        samples, device = self.samples(sections, train=False), self.linear.weight.device
        starts = range(0, len(samples), ROWS)
        batches = (samples.collate(samples.__getitems__(range(k, min(k + ROWS, len(samples))))) for k in starts)
        scores = torch.cat([self.linear(self.latent(batch.to(device)).float()) for batch in batches]).double()
        true = torch.from_numpy(measured_expression(sections)).to(device).double()
        away = scores - scores.mean(dim=0)
        spread = away.square().sum(dim=0)
        slope = torch.where(spread > 0, (away * true).sum(dim=0) / spread.clamp_min(1e-12), 0.0)
        shift = true.mean(dim=0) - slope * scores.mean(dim=0)
        self.linear.bias.copy_(slope * self.linear.bias + shift)
        self.linear.weight.mul_(slope[:, None])
        self.train(training)


def _turned(image: UInt8[Tensor, "n 3 h w"], turn: int) -> UInt8[Tensor, "n 3 h w"]:
    """`dihedral` of every patch."""
    return torch.rot90(image.flip(-1) if turn > 3 else image, turn % 4, dims=(-2, -1))


def _config(
    config: str | STNetConfig, genes: Sequence[str], mpp: float | None, loss: Literal["squared", "strank"] | None
) -> STNetConfig:
    made = resolve_config(config, STNetConfig, PUBLISHED, genes, mpp=mpp, loss=loss)
    if made.symmetries not in (1, 4, 8):
        raise ValueError(
            f"symmetries={made.symmetries} is no number of symmetries of a square: use 1 (none), 4 (quarter turns) "
            "or 8 (flips too)."
        )
    return made
