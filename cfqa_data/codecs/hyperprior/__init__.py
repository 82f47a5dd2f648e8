"""A learned scale hyperprior, with exact arithmetic: the same bytes on every machine."""

from cfqa_data.codecs.hyperprior.codec import Hyperprior, HyperpriorCodec, load_hyperprior

__all__ = ["Hyperprior", "HyperpriorCodec", "load_hyperprior"]
