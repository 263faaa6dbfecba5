"""Loading a model: a call like those that draw, with options of its own."""

from __future__ import annotations

from ..engine.fields import CONTEXT
from ..options.loading import LoadingOptions, Model
from .mode import Mode

LOADING = Mode("StableDiffusion", "Load a model.", Model, LoadingOptions, CONTEXT)
