"""Training and evaluation. Needs the extra `[train]`."""

from streampose.train.run import run_recipe

__all__ = ["run_recipe"]
