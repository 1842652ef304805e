"""Building blocks of the models: encoders of images and texts, pooling, losses."""

from stpredict.nn.encoders import Encoder, EncoderSpec
from stpredict.nn.losses import mse_pcc
from stpredict.nn.pool import Pooling, pool, pooling
from stpredict.nn.text import TextEncoder

__all__ = ["Encoder", "EncoderSpec", "Pooling", "TextEncoder", "mse_pcc", "pool", "pooling"]
