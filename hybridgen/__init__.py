"""Semi-supervised generative augmentation of images."""

__version__ = "0.1.0"
