"""Building blocks of the models: encoders, pooling, losses."""

from stpredict.nn.encoders import Encoder, EncoderSpec
from stpredict.nn.losses import mse_pcc
from stpredict.nn.pool import pool, pooling_matrix

__all__ = ["Encoder", "EncoderSpec", "mse_pcc", "pool", "pooling_matrix"]
