"""What the package and its recipes import of others, to import before them.

While one of the package's modules is imported, the hook that has its shapes checked hides the compiled form of every
other module: each process would compile PyTorch's again, which takes three times as long as all the rest.
"""

LIBRARIES = (
    "torch", "torch._dynamo", "torchvision.transforms.v2", "timm", "accelerate", "kornia", "scipy.stats",
    "sklearn.linear_model", "sklearn.pipeline", "matplotlib.backends.backend_agg", "matplotlib.figure",
    "pydantic.dataclasses", "tyro", "huggingface_hub", "jinja2",
    "tensorboard.backend.event_processing.event_file_loader",
)  # fmt: skip
