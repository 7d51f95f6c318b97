"""A model as people have it: as code with weights in a file, as a file alone, wrapped."""

from toolchain.loading.model import load_model

__all__ = ["load_model"]
