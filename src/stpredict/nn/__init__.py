"""Building blocks of the models: encoders, pooling, losses."""

from stpredict.nn.encoders import Encoder, EncoderSpec
from stpredict.nn.losses import mse_pcc
from stpredict.nn.pool import Pooling, pool, pooling

__all__ = ["Encoder", "EncoderSpec", "Pooling", "mse_pcc", "pool", "pooling"]
