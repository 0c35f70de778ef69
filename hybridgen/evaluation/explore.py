"""A page to look at hybrids on: what it shows of images, and its server, which answers to this machine alone.

Nothing is kept between requests, so that pages do not disturb each other: each names the parents that it asks about.
"""

import base64
import json
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from hybridgen.data.datasets import Dataset
from hybridgen.data.sources import chw, one_line, resized_square, upright
from hybridgen.data.streams import derive_seed
from hybridgen.evaluation.grid import crossed, hybrid_grid
from hybridgen.files import png
from hybridgen.hybridizer import Hybridizer
from hybridgen.networks.classifiers import Classifier
from hybridgen.page import rendered
from hybridgen.settings import Share, Whole, checked, settings
from hybridgen.types import Images, InputError

PAGE = Path(__file__).with_suffix(".html")
"""The page's template."""

HANDFUL, TOP = 24, 3
"""Images that are offered at once, and classes of which an opinion is told."""
CELLS = 64
"""Images that are looked at, or hybrids that are made, at once, at most."""
MOST_BYTES, MOST_PIXELS = 48 << 20, 64 << 20
"""Of a request, whose image files are in base64, and of an image."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Of image files; Pillow would hand some others to a program."""

Parent = int | str
"""An image's place in the data set, or an image file in base64."""
Parents = Annotated[tuple[Parent, ...], Field(min_length=1, max_length=CELLS)]
View = dict[str, Any]
"""An image as the page shows it: `src`, a PNG in base64; of the data set's, `place` and `label`; where judges have
looked at it, `opinions`: the likeliest classes and their probabilities."""


@settings
class Offer:
    """Asks for the next images of the data set after so many; behind the last one comes the first."""

    after: Whole


@settings
class Look:
    """Asks what judges say of these images themselves."""

    parents: Parents


@settings
class Cross:
    """Asks for hybrids of every semantic with every non-semantic parent."""

    semantic: Parents
    nonsemantic: Parents


@settings
class Between:
    """Asks for the image of codes on the way from a's (0) to b's (1)."""

    a: Parent
    b: Parent
    semantic: Share
    nonsemantic: Share


class Explorer:
    """What the page shows; from several threads, one at a time.

    InputError for a data set whose classes are not the hybridizer's, and for whoever asks for what is not there.
    """

    def __init__(
        self,
        hybridizer: Hybridizer,
        dataset: Dataset,
        part: Literal["train", "test"] = "test",
        *,
        oracle: Classifier | None = None,
        seed: int = 0,
    ) -> None:
        if dataset.classes != hybridizer.origin.classes:
            own, given = (", ".join(names)[:60] for names in (hybridizer.origin.classes, dataset.classes))
            raise InputError(
                f"--data {dataset.name}: has the classes {given}; this hybridizer has {own}, in this order"
            )
        self.hybridizer, self.dataset, self.name = hybridizer, dataset, part
        self.part = dataset.train if part == "train" else dataset.test
        self.device = next(hybridizer.parameters()).device
        generator = torch.Generator().manual_seed(derive_seed(seed, "explore"))
        self.order = torch.randperm(len(self.part), generator=generator)
        self.judges: dict[str, Callable[[Images], Tensor]] = {"hybridizer's classifier": hybridizer.classify}
        if oracle is not None:
            self.judges["oracle"] = oracle
        self.lock = Lock()

    def page(self) -> str:
        """The whole page, in HTML."""
        return rendered(
            PAGE,
            name=self.dataset.name,
            part=self.name,
            images=len(self.part),
            side=self.dataset.image_size,
            origin=self.hybridizer.origin,
            judges=list(self.judges),
            most=MOST_BYTES,
        )

    def offer(self, asked: Offer) -> list[View]:
        """No judge has looked at these."""
        count = len(self.order)
        places = self.order[(torch.arange(min(HANDFUL, count)) + asked.after) % count]
        with self.lock:
            pixels = self.part.images.gather(places)
        return [self._named(place) | _shown(image) for place, image in zip(places.tolist(), pixels, strict=True)]

    @torch.no_grad()
    def look(self, asked: Look) -> list[View]:
        with self.lock:
            views = self._judged(self._images(asked.parents))
        return [self._named(parent) | view for parent, view in zip(asked.parents, views, strict=True)]

    def cross(self, asked: Cross) -> list[list[View]]:
        """A row for each semantic parent."""
        with self.lock:
            views = iter(self._judged(crossed(self.hybridizer, *self._both(asked))))
        return [[next(views) for _ in asked.nonsemantic] for _ in asked.semantic]

    def grid(self, asked: Cross) -> bytes:
        """The same as one PNG, with the parents along its edges."""
        with self.lock:
            return png(hybrid_grid(self.hybridizer, *self._both(asked)))

    @torch.no_grad()
    def between(self, asked: Between) -> View:
        """Both codes are interpolated linearly, each for itself."""
        with self.lock:
            images = self._images((asked.a, asked.b))
            a, b = self.hybridizer.encode_semantic(images).split(1)
            semantic = torch.lerp(a, b, asked.semantic)
            a, b = self.hybridizer.encode_nonsemantic(images).split(1)
            nonsemantic = torch.lerp(a, b, asked.nonsemantic)
            return self._judged(self.hybridizer.decode(semantic, nonsemantic))[0]

    def _both(self, asked: Cross) -> tuple[Float[Tensor, "rows 3 size size"], Float[Tensor, "columns 3 size size"]]:
        if (cells := len(asked.semantic) * len(asked.nonsemantic)) > CELLS:
            raise InputError(f"semantic, nonsemantic: {cells} hybrids; {CELLS} are made at once, at most")
        return self._images(asked.semantic), self._images(asked.nonsemantic)

    def _images(self, parents: Sequence[int | str]) -> Images:
        return torch.stack([self._pixels(parent) for parent in parents]).to(self.device).float() / 255

    def _pixels(self, parent: int | str) -> UInt8[Tensor, "3 size size"]:
        if isinstance(parent, str):
            return squared(parent, self.hybridizer.image_size)
        if not 0 <= parent < len(self.part):
            raise InputError(f"image {parent}: the {self.name} part has {len(self.part)}, counted from 0")
        return self.part.images.gather(torch.tensor([parent]))[0].cpu()

    def _named(self, parent: int | str) -> View:
        if isinstance(parent, str):
            return {}
        label = int(self.part.labels[parent])
        return {"place": parent, "label": self.dataset.classes[label] if label >= 0 else "unknown class"}

    def _judged(self, images: Images) -> list[View]:
        views = [_shown(image) | {"opinions": {}} for image in images]
        for name, judge in self.judges.items():
            likely = judge(images).float().softmax(dim=1).topk(min(TOP, len(self.dataset.classes)))
            for view, shares, classes in zip(views, likely.values.tolist(), likely.indices.tolist(), strict=True):
                names = [self.dataset.classes[each] for each in classes]
                view["opinions"][name] = list(zip(names, shares, strict=True))
        return views


def squared(file: str, size: int) -> UInt8[Tensor, "3 size size"]:
    """An image file of any mode and size, in base64, as `decode` reads it. InputError for what is none, or a very large
    one."""
    try:
        with Image.open(BytesIO(base64.b64decode(file, validate=True)), formats=FORMATS) as image:
            if image.width * image.height <= MOST_PIXELS:
                return chw(np.array(resized_square(upright(image, 2 * size), size)))
            said = f"{image.width}×{image.height} pixels; {MOST_PIXELS >> 20} million at most"
    except UnidentifiedImageError:
        said = f"none of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's readers raise nearly every type on damaged files
        said = one_line(error)
    raise InputError(f"not a readable image ({said})")


def _shown(image: Tensor) -> View:
    return {"src": base64.b64encode(png(image)).decode()}


ASKED: dict[str, tuple[type, Callable[..., Any]]] = {
    "/offer": (Offer, Explorer.offer),
    "/look": (Look, Explorer.look),
    "/cross": (Cross, Explorer.cross),
    "/grid.png": (Cross, Explorer.grid),
    "/between": (Between, Explorer.between),
}
"""What the page posts, in JSON, and who answers: with JSON, or a PNG."""

SAFE = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves the page to this machine's browsers. InputError for a port that is not to be had."""

    daemon_threads = True

    def __init__(self, explorer: Explorer, port: int | None = None) -> None:
        self.explorer, self.page = explorer, explorer.page().encode()
        try:
            super().__init__(("127.0.0.1", port or 0), Handler)
        except OSError as error:
            raise InputError(f"--port {port}: not to be had ({one_line(error)}); give another, or none") from error

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Of one connection. Requests of other machines' pages, which a browser here may be made to send, are refused: by
    the name that they call this machine (an attacker's own may be made to lead here), and by their origin."""

    server: Server  # pyrefly: ignore[bad-override-mutable-attribute]
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if not self._is_of_this_machine():
            return
        if urlsplit(self.path).path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._say(HTTPStatus.NOT_FOUND, "there is one page, /")

    def do_POST(self) -> None:
        self.close_connection = True  # unless the request is read to its end
        if not self._is_of_this_machine():
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self._say(HTTPStatus.LENGTH_REQUIRED, "Content-Length: is missing")
        if len(length) > 12 or int(length) > MOST_BYTES:
            return self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BYTES >> 20} MB")
        body = self.rfile.read(int(length))
        self.close_connection = False
        if self.path not in ASKED:
            return self._say(HTTPStatus.NOT_FOUND, f"nothing is asked at {self.path}")
        kind, answer = ASKED[self.path]
        try:
            try:
                asked = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise InputError(f"not JSON ({one_line(error)})") from error
            if not isinstance(asked, dict):
                raise InputError("not a JSON object")
            given = answer(self.server.explorer, checked(kind, asked))
        except InputError as error:
            return self._say(HTTPStatus.BAD_REQUEST, str(error))
        if isinstance(given, bytes):
            self._send(HTTPStatus.OK, "image/png", given)
        else:
            self._send(HTTPStatus.OK, "application/json", json.dumps(given).encode())

    def _is_of_this_machine(self) -> bool:
        """By whatever port it is reached: a tunnel's is another."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.partition(":")[0] not in ("127.0.0.1", "localhost"):
            self._say(HTTPStatus.FORBIDDEN, f"open {self.server.address}, not {host}")
        elif origin not in (None, f"http://{host}"):
            self._say(HTTPStatus.FORBIDDEN, f"a page of {origin} may not ask")
        else:
            return True
        return False

    def _say(self, status: HTTPStatus, error: str) -> None:
        self._send(status, "application/json", json.dumps({"error": error}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | SAFE).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is no log."""
