"""A model as people have it: as code with weights in a file, as a file alone, wrapped, in another precision."""

from toolchain.loading.model import load_model
from toolchain.loading.plain import as_float32, unwrapped

__all__ = ["as_float32", "load_model", "unwrapped"]
