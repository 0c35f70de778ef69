"""Artefacts on the Hugging Face hub, and the cards that tell of them there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hybridgen.errors import InputError

CARD = "README.md"
LOGIN = "log in by `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Figure:
    """A share in [0, 1] of test images with its 95 % interval, where that is known."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    metric: str | None = None
    """What the hub calls it; None is told in the text alone."""


def fetched(source: str | Path, files: Sequence[str], *, what: str, revision: str | None = None) -> Path:
    """The folder itself; or, for a hub id `owner/name` or `owner/name@revision`, the folder to which these files of
    that branch, tag or commit are downloaded. InputError, naming `what` it is, for what is neither."""
    folder, name = Path(source), str(source)
    name, at, after = name.partition("@")
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"revision: {revision}, of a hub id; {source} is a folder")
        return folder
    if isinstance(source, Path) or not is_id(name):
        raise InputError(f"{what}: {source} is neither a folder nor a hub id (owner/name)")
    if at and (not after or revision is not None):
        raise InputError(f"{what}: {source}: one revision behind the @, and no other, is needed")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=after or revision, allow_patterns=list(files)))
    except Exception as error:
        raise InputError(f"{what}: {source} is no folder, and the hub does not give it ({_reason(error)})") from error
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise InputError(f"{what}: {source} on the hub has no {' and no '.join(missing)}; the id of a {what} is needed")
    return folder


def is_id(name: str) -> bool:
    """Whether a text is a hub id rather than a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def pushed(folder: Path, repo_id: str, *, private: bool, revision: str | None) -> str:
    """Upload a folder to a repository, made if it is not there, into this branch or its first one; the address of the
    commit. InputError where there is no token, and where the hub takes nothing."""
    if not is_id(repo_id) or "@" in repo_id:
        raise InputError(f"hub: {repo_id!r} is no id; owner/name is needed")
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise InputError(f"hub: there is no token; {LOGIN}")
    hub = huggingface_hub.HfApi(library_name="hybridgen")
    try:
        hub.create_repo(repo_id, private=private or None, exist_ok=True)
        if revision is not None:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        message = "Upload by hybridgen"
        done = hub.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
        return done.commit_url
    except Exception as error:
        raise InputError(f"hub: {repo_id} cannot be written ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: huggingface_hub's own begin with a number and the id of a request."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return f"there is no such repository, or it is private; for one of yours, {LOGIN}"
    response = getattr(error, "response", None)
    if response is not None and response.status_code == 401:
        return f"the token is not valid; {LOGIN}"
    told = getattr(error, "server_message", None) or str(error)
    return " ".join(told.split()) or type(error).__name__


def without_places(value: Any) -> Any:
    """A configuration in plain values without the folders of one machine: of absolute paths their last part."""
    if isinstance(value, Mapping):
        return {name: without_places(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    return re.sub(r"(^|:)(~?/|[A-Z]:\\)([^/\\]*[/\\])*", r"\1", value) if isinstance(value, str) else value


def card(
    repo_id: str,
    *,
    what: str,
    tags: Sequence[str],
    dataset: str,
    classes: Sequence[str],
    image_size: int,
    loading: Sequence[str],
    trained: str,
    training: Mapping[str, Any],
    figures: Sequence[Figure],
    images: int | None,
    limits: Sequence[str],
    license: str | None = None,
) -> str:
    """The model card: a YAML header after the hub's convention, what it is, how it is loaded, figures with their
    intervals, how it was trained, what it is not for. Without a licence unless one is given."""
    from huggingface_hub import EvalResult, ModelCardData

    name, kind, dataset = repo_id.rpartition("/")[2], *without_places(dataset).rpartition(":")[::2]
    source = dataset.partition(",")[0] if kind == "hf" else dataset
    told = [(figure.metric, figure) for figure in figures if figure.metric]
    header = ModelCardData(
        license=license,
        library_name="hybridgen",
        tags=["hybridgen", *tags],
        pipeline_tag="image-classification" if "image-classification" in tags else "image-to-image",
        datasets=[source] if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source) else None,  # which are ids
        metrics=sorted({metric for metric, _ in told}),
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=source,
                dataset_name=dataset,
                metric_type=metric,
                metric_name=figure.name,
                metric_value=figure.value,
                metric_args=None if figure.interval is None else {"interval_95": list(figure.interval)},
            )
            for metric, figure in told
        ]
        or None,
    ).to_yaml()
    percent = lambda share: f"{100 * share:.1f}"
    rows = [
        f"| {figure.name} | {percent(figure.value)} % | "
        + ("–" if figure.interval is None else " to ".join(map(percent, figure.interval)))
        + " |"
        for figure in figures
    ]
    on = "the test images" if images is None else f"the {images:,} test images"
    parts = [
        f"---\n{header}\n---",
        f"# {name}",
        f"{what}, of {dataset}: images of {image_size}×{image_size}, {len(classes)} classes ({', '.join(classes)}).",
        "\n".join(["```python", *loading, "```"]),
        *(["\n".join([f"| on {on} | | 95 % interval |", "|---|---|---|", *rows])] if rows else []),
        f"## Training\n\n{trained}\n\n```yaml\n{yaml.safe_dump(dict(training), sort_keys=False)}```",
        "\n".join(["## Limits\n", *(f"- {limit}" for limit in limits)]),
    ]
    return "\n\n".join(parts) + "\n"
