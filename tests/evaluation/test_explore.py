"""The page to look at hybrids on: what its server answers, to whom, and that a browser shows it."""

import base64
import json
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from io import BytesIO
from threading import Thread
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch
from browser import FOUND, Browser
from PIL import Image

from hybridgen.assets import bundled
from hybridgen.data.datasets import Dataset, Part
from hybridgen.data.sources import InMemory
from hybridgen.evaluation.explore import MOST_BYTES, Explorer, Offer, Server
from hybridgen.hybridizer import Hybridizer
from hybridgen.networks.classifiers import Classifier
from hybridgen.networks.registry import make_network
from hybridgen.types import InputError


@pytest.fixture(scope="module")
def hybridizer() -> Hybridizer:
    """A trained one: its hybrids of exchanged parents differ much."""
    return Hybridizer.from_pretrained(bundled())


@pytest.fixture(scope="module")
def dataset(hybridizer) -> Dataset:
    """Thirty test images of one colour each below noise; of the first the class is not known."""
    draw = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (30, 3, 1, 1), generator=draw)
    pixels = (colours + torch.randint(-40, 40, (30, 3, 16, 16), generator=draw)).clamp(0, 255).byte()
    labels = torch.arange(30) % 10
    labels[0] = -1
    part = Part(InMemory(pixels), labels)
    one = Part(InMemory(pixels[:1]), labels[:1])
    rest = {"flip": False, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    return Dataset("<b>toy", hybridizer.origin.classes, 16, one, part, "f" * 64, **rest)


@pytest.fixture(scope="module")
def oracle(dataset) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_network("leaky-wrn-10-1", 10, image_size=16)
    return Classifier(network, mean=dataset.mean, std=dataset.std).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def explorer(hybridizer, dataset, oracle) -> Explorer:
    return Explorer(hybridizer, dataset, oracle=oracle)


@pytest.fixture(scope="module")
def server(explorer):
    with Server(explorer) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


class Said:
    def __init__(self, connection: HTTPConnection) -> None:
        answer = connection.getresponse()
        self.status, self.headers, self.body = answer.status, answer.headers, answer.read()
        connection.close()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def ask(server):
    """Posts a body, or gets the page, perhaps as another one than a browser of this machine would."""

    def request(path: str, body: Any = None, **headers: str) -> Said:
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        text = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, text, names)
        return Said(connection)

    return request


def shown(png: str | bytes) -> np.ndarray:
    """The pixels of a PNG, in base64 or not: [h, w, 3]."""
    with Image.open(BytesIO(png if isinstance(png, bytes) else base64.b64decode(png))) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.array(image).astype(int)


def seen(image: torch.Tensor) -> np.ndarray:
    """[1, 3, h, w] in [0, 1] as pixels."""
    return (image[0].double() * 255).round().permute(1, 2, 0).numpy().astype(int)


def near(one: np.ndarray, other: np.ndarray) -> bool:
    """The same pixels, up to the rounding of batches of another size."""
    return one.shape == other.shape and np.abs(one - other).max() <= 1


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """In base64."""
    file = BytesIO()
    image.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def floats(dataset: Dataset, place: int) -> torch.Tensor:
    return dataset.test.images.pixels[place : place + 1].float() / 255


def test_hybrids_are_those_of_hybridize(ask, hybridizer, dataset):
    own = file_of(Image.fromarray(dataset.test.images.pixels[9].permute(1, 2, 0).numpy()))
    rows = ask("/cross", {"semantic": [3, 7], "nonsemantic": [7, 5, own]}).json
    direct = {
        (a, b): seen(hybridizer.hybridize(semantic=floats(dataset, a), nonsemantic=floats(dataset, b)))
        for a in (3, 7)
        for b in (7, 5, 9, 3)
    }
    for row, a in zip(rows, (3, 7), strict=True):
        for view, b in zip(row, (7, 5, 9), strict=True):
            assert near(shown(view["src"]), direct[a, b])
    assert np.abs(direct[3, 7] - direct[7, 3]).max() > 50 and np.abs(direct[3, 7] - direct[3, 5]).max() > 50
    # The grid: tiles of 16 pixels are four times as large, 2 apart, the parents 8 more
    grid = shown(ask("/grid.png", {"semantic": [3, 7], "nonsemantic": [7, 5, 9]}).body)
    tile = lambda row, column: grid[slice(*edges(row)), slice(*edges(column))][2::4, 2::4]
    edges = lambda i: (2 + 66 * i + 8 * (i > 0), 66 + 66 * i + 8 * (i > 0))
    assert near(tile(2, 3), direct[7, 9]) and near(tile(1, 1), direct[3, 7])
    assert near(tile(2, 0), seen(floats(dataset, 7))) and near(tile(0, 2), seen(floats(dataset, 5)))


def test_sliders_go_from_one_code_to_the_other(ask, hybridizer, dataset):
    codes = {
        place: (hybridizer.encode_semantic(image).double(), hybridizer.encode_nonsemantic(image).double())
        for place in (3, 7)
        for image in (floats(dataset, place),)
    }
    pictures = {}
    for s, n in ((0, 0), (0, 1), (1, 0), (0.25, 0), (0, 0.25), (0.75, 0.5)):
        view = ask("/between", {"a": 3, "b": 7, "semantic": s, "nonsemantic": n}).json
        pictures[s, n] = shown(view["src"])
        between = [(1 - t) * codes[3][i] + t * codes[7][i] for i, t in enumerate((s, n))]
        assert near(pictures[s, n], seen(hybridizer.decode(*(code.float() for code in between))))
    assert near(pictures[0, 1], shown(ask("/cross", {"semantic": [3], "nonsemantic": [7]}).json[0][0]["src"]))
    for s, n in ((0.25, 0), (0, 0.25)):
        assert np.abs(pictures[s, n] - pictures[0, 0]).max() > 10


def test_judges_say_what_they_think_of_images_and_of_hybrids(ask, oracle, hybridizer, dataset):
    views = ask("/look", {"parents": [12, 0]}).json
    assert [(view["place"], view["label"]) for view in views] == [(12, "2"), (0, "unknown class")]
    assert ask("/look", {"parents": [10]}).json[0]["label"] == "0"
    assert np.array_equal(shown(views[0]["src"]), seen(floats(dataset, 12)))
    hybrid = hybridizer.hybridize(semantic=floats(dataset, 12), nonsemantic=floats(dataset, 4))
    (made,) = ask("/cross", {"semantic": [12], "nonsemantic": [4]}).json[0]
    for view, image in ((views[0], floats(dataset, 12)), (made, hybrid)):
        logits = {"hybridizer's classifier": hybridizer.classify(image), "oracle": oracle(image)}
        assert view["opinions"].keys() == logits.keys()
        for judge, told in view["opinions"].items():
            exp = logits[judge][0].double().exp()
            likely = sorted(zip((exp / exp.sum()).tolist(), dataset.classes, strict=True), reverse=True)[:3]
            assert [name for name, _ in told] == [name for _, name in likely]
            assert [share for _, share in told] == pytest.approx([share for share, _ in likely], abs=1e-5)


def test_handfuls_go_round_the_data_set(ask, dataset):
    first, then = (ask("/offer", {"after": after}).json for after in (0, 24))
    places = [image["place"] for image in first + then]
    assert len(first) == 24 and sorted(places[:30]) == list(range(30)) and places[30:] == places[:18]
    assert places[:24] != sorted(places[:24])
    image = first[5]
    assert image["label"] == (str(image["place"] % 10) if image["place"] else "unknown class")
    assert np.array_equal(shown(image["src"]), seen(floats(dataset, image["place"])))


def halves(mode: str, top: Any, bottom: Any) -> Image.Image:
    """Of 40 × 90 pixels."""
    image = Image.new(mode, (40, 90), top)
    image.paste(bottom, (0, 45, 40, 90))
    return image


def rotated() -> Image.Exif:
    """To be shown after a turn by 90° clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


@pytest.mark.parametrize(("file", "top", "bottom"), [
    (file_of(halves("RGB", RED, (0, 9, 99))), RED, (0, 9, 99)),
    (file_of(halves("RGB", RED, (0, 9, 99)), "BMP"), RED, (0, 9, 99)),
    (file_of(halves("RGBA", (*RED, 255), (0, 0, 0, 0))), RED, WHITE),
    (file_of(halves("RGBA", (*RED, 255), (0, 0, 0, 102))), RED, (153, 153, 153)),
    (file_of(halves("LA", (30, 255), (30, 0))), (30, 30, 30), WHITE),
    (file_of(halves("RGB", RED, BLACK).quantize(2)), RED, BLACK),
    (file_of(halves("P", 0, 1), "GIF", transparency=1), BLACK, WHITE),
    (file_of(halves("L", 200, 7)), (200, 200, 200), (7, 7, 7)),
    (file_of(halves("1", 1, 0), "TIFF"), WHITE, BLACK),
    (file_of(halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "JPEG", quality=100), RED, BLACK),
    (file_of(halves("I;16", 257 * 100, 257 * 3)), (100, 100, 100), (3, 3, 3)),
    (file_of(halves("RGB", RED, BLACK).rotate(90, expand=True), "JPEG", exif=rotated(), quality=100), RED, BLACK),
    (file_of(halves("RGB", RED, BLACK).rotate(90, expand=True), "PNG", exif=rotated()), RED, BLACK),
    (file_of(Image.new("RGB", (1, 1), RED)), RED, RED),
    (file_of(Image.new("RGB", (900, 2), RED), "WEBP", lossless=True), RED, RED),
])  # fmt: skip
def test_own_images_of_every_mode_and_size(ask, file, top, bottom):
    (view,) = ask("/look", {"parents": [file]}).json
    pixels = shown(view["src"])
    assert pixels.shape == (16, 16, 3) and "label" not in view and len(view["opinions"]) == 2
    assert np.abs(pixels[:5] - top).max() <= 3 and np.abs(pixels[11:] - bottom).max() <= 3


def promising(width: int, height: int) -> str:
    """A PNG file whose header alone speaks of so many pixels."""
    file = bytearray(base64.b64decode(file_of(Image.new("RGB", (1, 1)))))
    file[16:24] = struct.pack(">II", width, height)
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    return base64.b64encode(file).decode()


TRUNCATED = base64.b64encode(base64.b64decode(file_of(Image.effect_noise((99, 99), 50)))[:900]).decode()
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
"""Pillow knows it, and would run another program."""
PAIR: dict[str, Any] = {"a": 1, "b": 2, "semantic": 0, "nonsemantic": 0}


@pytest.mark.parametrize(("path", "body", "words"), [
    ("/look", {"parents": [base64.b64encode(b"no image").decode()]}, "not a readable image (none of AVIF, BMP"),
    ("/look", {"parents": [base64.b64encode(POSTSCRIPT).decode()]}, "not a readable image (none of AVIF, BMP"),
    ("/look", {"parents": [""]}, "not a readable image"),
    ("/look", {"parents": ["é?"]}, "not a readable image"),
    ("/look", {"parents": [TRUNCATED]}, "not a readable image (image file is truncated"),
    ("/look", {"parents": [promising(8200, 8200)]}, "8200×8200 pixels; 64 million at most"),
    ("/look", {"parents": [promising(2**30, 2**30)]}, "not a readable image (Image size"),
    ("/look", {"parents": [file_of(Image.new("F", (9, 9)), "TIFF")]}, "floating-point pixels"),
    ("/look", {"parents": [30]}, "image 30: the test part has 30, counted from 0"),
    ("/look", {"parents": [3, -1]}, "image -1: the test part has 30"),
    ("/look", {"parents": [10**30]}, "image 1000"),
    ("/look", {"parents": []}, "parents: "),
    ("/look", {"parents": [1] * 65}, "parents: "),
    ("/look", {"parents": [[1]]}, "parents.0"),
    ("/look", {}, "parents: is missing"),
    ("/look", [1], "not a JSON object"),
    ("/look", b"{", "not JSON"),
    ("/look", b"[" * 100_000, "not JSON"),
    ("/look", b"\xff", "not JSON"),
    ("/cross", {"semantic": [1] * 9, "nonsemantic": [2] * 8}, "72 hybrids; 64 are made at once"),
    ("/grid.png", {"semantic": [1], "nonsemantic": [99]}, "image 99"),
    ("/between", PAIR | {"semantic": 1.5}, "semantic: 1.5 should be less than or equal to 1"),
    ("/between", PAIR | {"nonsemantic": float("nan")}, "nonsemantic: nan should be a finite number"),
    ("/between", PAIR | {"more": 1}, "unknown field 'more'"),
    ("/offer", {"after": -1}, "after: -1"),
])  # fmt: skip
def test_rubbish_is_one_line(ask, capfd, path, body, words):
    said = ask(path, body)
    assert said.status == 400 and said.json.keys() == {"error"} and words in said.json["error"]
    assert "\n" not in said.json["error"] and len(said.json["error"]) < 400
    assert capfd.readouterr() == ("", "")


def test_other_machines_pages_and_too_large_requests_are_refused(ask, server):
    body, port = {"after": 0}, server.server_port
    for headers in ({"Host": "evil.example"}, {"Host": f"127.0.0.1.evil.example:{port}"}, {"Host": ""}):
        assert ask("/", **headers).status == ask("/offer", body, **headers).status == 403
    for origin in ("http://evil.example", "null", f"http://localhost:{port}", "http://127.0.0.1"):
        assert ask("/offer", body, Origin=origin).status == 403
    assert ask("/offer", body, Origin=f"http://127.0.0.1:{port}").status == 200
    tunnel = "localhost:9999"
    assert ask("/offer", body, Host=tunnel, Origin=f"http://{tunnel}").status == ask("/", Host=tunnel).status == 200
    for length, status in ((str(MOST_BYTES + 1), 413), ("9" * 50, 413), ("-1", 411), ("x", 411)):
        said = ask("/look", b"", Content_Length=length)
        assert said.status == status and said.headers["Connection"] == "close" and "error" in said.json
    assert ask("/nowhere").status == ask("/nowhere", body).status == ask("/../pyproject.toml").status == 404
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_loads_nothing_and_tells_what_it_shows(ask, hybridizer):
    said = ask("/")
    text = said.body.decode()
    assert said.status == 200 and said.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert (said.headers["X-Content-Type-Options"], said.headers["Cache-Control"]) == ("nosniff", "no-store")
    kinds = [each.headers["Content-Type"] for each in (said, ask("/nowhere"))]
    assert kinds == ["text/html; charset=utf-8", "application/json"]
    assert "<h1>Hybrids of &lt;b&gt;toy</h1>" in text and "30 test images, 16×16 pixels" in text
    assert not re.search(r"https?://|@import|url\(|<script src|<link(?! rel=\"icon\" href=\"data:,\")", text)


def test_several_pages_at_once_get_each_its_own(ask, hybridizer, dataset, monkeypatch):
    """One at a time is computed."""
    decode, computing, most = hybridizer.decode, [], []

    def counted(*codes: torch.Tensor) -> torch.Tensor:
        computing.append(1)
        most.append(len(computing))
        sleep(0.01)
        images = decode(*codes)
        computing.pop()
        return images

    monkeypatch.setattr(hybridizer, "decode", counted)
    pairs = [(a, (7 * a + 3) % 30) for a in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: ask("/cross", {"semantic": [pair[0]], "nonsemantic": [pair[1]]}), pairs))
    for (a, b), said in zip(pairs, found, strict=True):
        direct = hybridizer.hybridize(semantic=floats(dataset, a), nonsemantic=floats(dataset, b))
        assert near(shown(said.json[0][0]["src"]), seen(direct))
    assert set(most) == {1}


@pytest.mark.parametrize(("error", "told"), [(BrokenPipeError, ""), (TimeoutError, ""), (KeyError, "KeyError")])
def test_a_browser_that_has_gone_is_no_error(server, capsys, error, told):
    try:
        raise error
    except error:
        server.handle_error(None, ("127.0.0.1", 1))
    said = capsys.readouterr().err
    assert told in said and bool(said) == bool(told)


def test_data_of_other_classes_and_taken_ports_are_refused(hybridizer, dataset, explorer, server):
    for classes in (("cat", "dog"), tuple(reversed(dataset.classes))):
        with pytest.raises(InputError, match=r"^--data <b>toy: has the classes .*; this hybridizer has 0, 1, 2, "):
            Explorer(hybridizer, replace(dataset, classes=classes))
    with pytest.raises(InputError, match=rf"^--port {server.server_port}: not to be had \(Address already in use\)"):
        Server(explorer, server.server_port)
    of_training = Explorer(hybridizer, dataset, "train")
    assert [image["place"] for image in of_training.offer(Offer(after=0))] == [0]
    assert "1 train images, 16×16 pixels" in of_training.page()


def test_the_order_of_images_is_the_seeds(hybridizer, dataset):
    orders = [Explorer(hybridizer, dataset, seed=seed).order.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[2]) == list(range(30))


@pytest.mark.skipif(FOUND is None, reason="needs chromium, which is not installed here")
def test_a_browser_shows_it(server, hybridizer, dataset, tmp_path):
    def becomes(selector: str, pixels: np.ndarray) -> bool:
        """Whether this picture is drawn, in half a minute."""
        until = monotonic() + 30
        while monotonic() < until:
            source = browser.js(f"document.querySelector('{selector}').src").partition("base64,")[2]
            if source and near(shown(source), pixels):
                return True
        return False

    hybrid = lambda a, b: seen(hybridizer.hybridize(semantic=a, nonsemantic=b))
    cell = "#four button[data-semantic={}][data-nonsemantic={}] img"
    a, b = floats(dataset, 3), floats(dataset, 7)
    Image.new("RGB", (50, 90), (200, 30, 60)).save(tmp_path / "own.png")
    (tmp_path / "rubbish.png").write_text("no image")
    own = torch.tensor([200, 30, 60]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255

    with Browser(tmp_path / "browser") as browser:
        # Two images of the data set
        browser.open(f"{server.address}#a=3&b=7")
        browser.wait("document.querySelectorAll('#many img').length === 36 && document.querySelector('#a .said i')")
        assert browser.js("document.querySelector('#a .label').textContent") == "3"
        for (s, one), (n, other) in ((x, y) for x in (("a", a), ("b", b)) for y in (("a", a), ("b", b))):
            assert becomes(cell.format(s, n), hybrid(one, other))
        assert becomes("#now img", hybrid(a, b))
        bar = "document.querySelector('#a .said i')"
        share = hybridizer.classify(a).softmax(1).max().item()
        assert float(browser.js(f"getComputedStyle({bar}).backgroundSize").split("%")[0]) == pytest.approx(100 * share)

        # One's own image for B; one that is none changes nothing
        browser.choose_file("#b input", tmp_path / "own.png")
        browser.wait("document.querySelector('#b .label').textContent === 'own.png'")
        assert becomes(cell.format("a", "b"), hybrid(a, own)) and becomes(cell.format("b", "a"), hybrid(own, a))
        browser.choose_file("#b input", tmp_path / "rubbish.png")
        browser.wait("document.querySelector('#error').textContent.startsWith('rubbish.png: not a readable image')")
        assert browser.js("document.querySelector('#b .label').textContent") == "own.png"

        # A place that is not there is told, until others are chosen
        browser.js("take('a', {place: 99}); null")
        browser.wait("document.querySelector('#error').textContent.startsWith('image 99: the test part has 30')")
        browser.js("take('a', {place: 98}); take('a', {place: 3}); null")
        browser.wait("document.querySelector('#error').hidden")
        assert becomes(cell.format("a", "b"), hybrid(a, own)) and becomes(cell.format("b", "a"), hybrid(own, a))

        # A slider that is dragged, before it is let go
        browser.js("document.querySelector('#semantic').scrollIntoView({block: 'center'})")
        box = "document.querySelector('#semantic').getBoundingClientRect().toJSON()"
        x, y, width = (browser.js(box)[name] for name in ("x", "y", "width"))
        y += 8
        browser.mouse("mousePressed", x + 8, y)
        browser.mouse("mouseMoved", x + width / 2, y)
        browser.wait("Math.abs(document.querySelector('#semantic').value - 0.5) < 0.02")
        t = float(browser.js("document.querySelector('#semantic').value"))
        codes = [hybridizer.encode_semantic(image) for image in (a, own)]
        middle = seen(hybridizer.decode((1 - t) * codes[0] + t * codes[1], hybridizer.encode_nonsemantic(own)))
        assert becomes("#now img", middle) and np.abs(middle - hybrid(a, own)).max() > 10
        assert browser.js("document.querySelector('#save').href === document.querySelector('#now img').src")
        browser.mouse("mouseReleased", x + width / 2, y)

        # A saved row and column, with twelve others: a row is as wide as a column is high
        browser.js("URL.createObjectURL = blob => { window.saved = blob; return '#'; }; null")
        for which, size in (("row", [868, 142]), ("column", [142, 868])):
            browser.js(f"window.saved = null; document.querySelector('[data-grid={which}]').click()")
            browser.wait("window.saved !== null")
            assert browser.js("createImageBitmap(window.saved).then(image => [image.width, image.height])") == size
