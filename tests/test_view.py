"""The web page, driven in a real browser, and the server behind it."""

import functools
import http.client
import json
import os
import shutil
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra [web]")
pytest.importorskip("uvicorn", reason="needs the extra [web]")
websockets = pytest.importorskip("websockets.sync.client", reason="needs the extra [web]")

from websockets.exceptions import ConnectionClosed

from streampose.errors import OutputError, UsageError
from streampose.keys import add_key
from streampose.pictures import to_jpeg
from streampose.publish import Publisher
from streampose.types import Pose, PoseFrame
from streampose.view import server
from streampose.view.hub import Hub
from streampose.view.session import Session

sys.path.insert(0, str(Path(__file__).parent))
import stream_messages
from ports import free_endpoint

WAIT_S = 60
pytestmark = pytest.mark.usefixtures("patient_stream")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SIZE = (240, 320)
wait_until = functools.partial(stream_messages.wait_until, seconds=WAIT_S)


def make_frame(index, source, people=1):
    """Somebody who walks right by 2 px a frame, all joints on a grid in the box."""
    left = 20 + (2 * index) % 200
    grid = np.array([(left + 15 * (joint % 4), 60 + 30 * (joint // 4), 0.9) for joint in range(17)], np.float32)
    poses = tuple(
        Pose(track_id=1 + person, box=np.array([left, 50, left + 60, 220], np.float32), score=0.8, keypoints=grid)
        for person in range(people)
    )
    published_ns = 10**12 + index * 10**9 // 30  # of a camera that keeps its pace, however busy this machine is
    return PoseFrame(
        source=source, epoch=0, frame_index=index, pts_s=index / 30, captured_ns=published_ns - 42_000_000,
        published_ns=published_ns, width=SIZE[1], height=SIZE[0], skeleton="coco17", dropped=3, people=poses,
    )  # fmt: skip


class Cameras:
    """Publishes frames and, to those who look, pictures of some cameras until it is closed."""

    def __init__(self, *names, **kwargs):
        self.names = set(names)
        self.pictures = 0
        self.publisher = Publisher(kwargs.pop("endpoint", "tcp://127.0.0.1:*"), model="lite", **kwargs)
        for name in names:
            self.publisher.set_state(name, "online")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        jpeg = to_jpeg(np.full((*SIZE, 3), (60, 40, 20), np.uint8))
        index = 0
        while not self._done.wait(1 / 30):
            for name in sorted(self.names):
                self.publisher.publish(make_frame(index, name))
                if index % 3 == 0 and self.publisher.is_looked_at(name):
                    self.publisher.show(name, jpeg, epoch=0, frame_index=index, captured_ns=1, size=SIZE)
                    self.pictures += 1
            index += 1

    def kill(self, name):
        """A camera is lost."""
        self.names.discard(name)
        self.publisher.set_state(name, "offline")

    def close(self):
        self._done.set()
        self._thread.join()
        self.publisher.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextmanager
def serving(endpoint, **kwargs):
    """The address of a page that shows the stream."""
    stop = threading.Event()
    shown = []
    thread = threading.Thread(target=server.serve, args=(endpoint, stop, shown.append), kwargs={"port": 0, **kwargs})
    thread.start()
    try:
        wait_until(lambda: shown)
        yield shown[0]
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert not thread.is_alive()


def until(page, expression, argument=None):
    """Wait in the page; by asking again, since the page's security policy forbids what Playwright would inject."""
    wait_until(lambda: page.evaluate(expression, argument))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra [dev]")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    contexts = []

    def make(address, width=1280, height=800, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_S * 1000)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
        page.hosts = set()
        page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]))
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()


PIXELS = """source => {
    const canvas = document.querySelector(`[data-source="${source}"] .stage canvas`);
    const {data, width, height} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0, sum = 0;
    for (let i = 0; i < data.length; i += 4)
        if (Math.max(data[i], data[i + 1], data[i + 2]) > 150) { count++; sum += (i / 4) % width; }
    return {count, middle: sum / count / width};
}"""
PAINTED = """source => {
    const canvas = document.querySelector(`[data-source="${source}"] .stage canvas`);
    return [...canvas.getContext("2d").getImageData(3, canvas.height - 5, 1, 1).data];
}"""
STATE = '([source, state]) => document.querySelector(`[data-source="${source}"]`)?.dataset.state === state'


def test_the_page_shows_cameras_and_follows_what_becomes_of_them(open_page):
    with (
        Cameras("cam1", "cam2", "cam10", endpoint=free_endpoint()) as cameras,
        serving(cameras.publisher.endpoint) as address,
    ):
        page = open_page(address)
        until(page, "document.querySelectorAll('.tile').length === 3")
        order = "[...document.querySelectorAll('.tile')].map(t => t.dataset.source)"
        assert page.evaluate(order) == ["cam1", "cam2", "cam10"]
        until(page, STATE, ["cam1", "online"])
        until(page, f"({PAINTED})('cam1')[2] > 10")  # the picture's blue is there
        first = page.evaluate(PIXELS, "cam1")
        assert first["count"] > 100
        until(
            page, f"middle => Math.abs(({PIXELS})('cam1').middle - middle) > 0.05", first["middle"]
        )  # the skeleton walks
        until(page, "Math.round(document.querySelector('[data-figure=fps]').textContent) === 30")
        until(page, "document.querySelector('[data-figure=latency]').textContent === '42 ms'")
        assert page.inner_text("[data-figure=people]") == "1"
        assert page.inner_text("[data-figure=dropped]") == "3"
        until(page, "document.querySelector('.summary').textContent.includes('3 cameras, 3 online')")
        cameras.kill("cam2")
        until(page, STATE, ["cam2", "offline"])
        until(page, "document.querySelector('[data-source=cam2] .veil').innerText.startsWith('Offline since ')")
        assert page.evaluate("document.querySelector('[data-source=cam1]').dataset.state") == "online"
        cameras.close()
        until(page, STATE, ["cam1", "offline"])
        until(page, "document.querySelector('.link').dataset.state === 'lost'")
        with Cameras("cam1", "cam2", endpoint=cameras.publisher.endpoint):
            until(page, STATE, ["cam1", "online"])
            until(page, STATE, ["cam2", "online"])
        assert page.problems == []
        assert page.hosts == {address.split("/")[2]}


def shown_by(hub):
    """What a browser that has just come is told of each camera."""
    return {camera["source"]: camera for camera in json.loads(Session(hub).news())["cameras"]}


def test_what_a_new_run_of_the_publisher_has_no_more_is_offline(monkeypatch):
    with Cameras("kept", "gone", endpoint=free_endpoint()) as cameras, Hub(cameras.publisher.endpoint) as hub:
        wait_until(lambda: len(hub.cameras) == 2)
        wait_until(lambda: {camera["state"] for camera in shown_by(hub).values()} == {"online"})
        cameras.close()
        with Cameras("kept", endpoint=cameras.publisher.endpoint):
            wait_until(lambda: hub.cameras["kept"].connection == 2)
            monkeypatch.setattr("streampose.view.hub.SILENT_S", 0.3)
            wait_until(lambda: shown_by(hub)["gone"]["state"] == "offline")
            assert shown_by(hub)["kept"]["state"] == "online"
            assert shown_by(hub)["gone"]["changed_s"] > 0


def test_no_pace_is_shown_of_a_camera_that_stalls(monkeypatch):
    monkeypatch.setattr("streampose.view.hub._WINDOW_NS", 200_000_000)
    with Cameras("a") as cameras, Hub(cameras.publisher.endpoint) as hub:
        wait_until(lambda: hub.cameras and shown_by(hub)["a"]["fps"] > 20)
        cameras.names.clear()
        wait_until(lambda: shown_by(hub)["a"]["fps"] == 0)
        cameras.names.add("a")
        wait_until(lambda: shown_by(hub)["a"]["fps"] > 20)


def test_one_camera_in_focus_and_pause(open_page):
    with Cameras("a", "b") as cameras, serving(cameras.publisher.endpoint) as address:
        page = open_page(address)
        page.click("[data-source=b] .stage")
        until(page, "document.querySelectorAll('.people .swatch').length === 1")
        assert page.is_hidden("[data-source=a]")
        assert "#b" in page.url
        assert "lite" in page.inner_text("[data-source=b] .facts")
        wait_until(lambda: not cameras.publisher.is_looked_at("a"))
        assert cameras.publisher.is_looked_at("b")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("[data-source=a].focused")
        page.go_back()
        page.wait_for_selector("[data-source=b].focused")
        page.keyboard.press("Escape")
        page.wait_for_selector("[data-source=a]")
        page.click(".pause")
        assert page.get_attribute(".pause", "aria-pressed") == "true"
        wait_until(lambda: not cameras.publisher.is_looked_at("a"))
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        before = page.evaluate(PIXELS, "a")
        seen = cameras.publisher._seq["a"]
        wait_until(lambda: cameras.publisher._seq["a"] > seen + 10)
        assert page.evaluate(PIXELS, "a") == before
        page.keyboard.press("Tab")
        page.click(".pause")
        until(page, f"middle => ({PIXELS})('a').middle !== middle", before["middle"])
        assert page.problems == []


def test_a_picture_that_comes_too_late_for_a_pause_is_let_go(open_page):
    with Cameras("a") as cameras, serving(cameras.publisher.endpoint) as address:
        page = open_page(address)
        until(page, STATE, ["a", "online"])
        page.evaluate("""() => {
            const decode = createImageBitmap;
            window.asked = 0;
            window.made = [];
            const held = new Promise((done) => (window.release = done));
            window.createImageBitmap = async (blob) => {
                window.asked += 1;
                await held;
                const picture = await decode(blob);
                window.made.push(picture);
                return picture;
            };
        }""")
        until(page, "asked > 2")
        page.click(".pause")
        page.evaluate("release()")
        until(page, "made.length === asked && made.every((picture) => picture.width === 0)")  # closed ones have no size


@pytest.mark.parametrize(("width", "columns"), [(1440, 5), (390, 2)])
def test_twenty_cameras_fit(open_page, width, columns):
    names = [f"cam{number:02d}" for number in range(20)]
    with Cameras(*names) as cameras, serving(cameras.publisher.endpoint) as address:
        page = open_page(address, width=width, scheme="dark")
        until(page, "document.querySelectorAll('.tile[data-state=online]').length >= 4")
        until(page, "document.querySelectorAll('.tile').length === 20")
        tops = page.evaluate(
            "[...document.querySelectorAll('.tile')].map(t => Math.round(t.getBoundingClientRect().top))"
        )
        assert tops.count(min(tops)) == columns
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        clipped = "[...document.querySelectorAll('.figures dd')].filter(d => d.scrollWidth > d.clientWidth + 1).length"
        assert page.evaluate(clipped) == 0
        if columns == 2:  # the last are not on the screen, and cost no pictures
            below = "document.querySelector('[data-source=cam19]').getBoundingClientRect().top > innerHeight + 120"
            assert page.evaluate(below)
            wait_until(lambda: cameras.publisher.is_looked_at("cam00"))
            assert not cameras.publisher.is_looked_at("cam19")


def test_light_and_dark(open_page):
    with Cameras("a") as cameras, serving(cameras.publisher.endpoint) as address:
        shades = []
        for scheme in ("light", "dark"):
            page = open_page(address, scheme=scheme)
            shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(set(shades)) == 2
        page.click(".theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == shades[0]
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == shades[0]


def test_pictures_are_made_only_while_somebody_looks(open_page):
    with Cameras("a") as cameras, serving(cameras.publisher.endpoint) as address:
        seen = cameras.publisher._seq.get("a", 0)
        wait_until(lambda: cameras.publisher._seq.get("a", 0) > seen + 10)
        assert cameras.pictures == 0
        page = open_page(address)
        wait_until(lambda: cameras.pictures > 3)
        page.context.close()
        wait_until(lambda: not cameras.publisher.is_looked_at("a"))


def test_the_terminal_says_once_what_is_wrong_and_when_it_is_not_any_more(caplog, monkeypatch):
    monkeypatch.setattr("streampose.view.server._PATIENCE_S", 0.2)
    caplog.set_level("INFO")
    endpoint = free_endpoint()
    with serving(endpoint):
        for problem in (f"nobody publishes at {endpoint}: connection refused", f"{endpoint} has fallen silent"):
            wait_until(lambda: f"{problem}; trying again" in caplog.text)  # noqa: B023
            with Cameras("a", endpoint=endpoint):
                wait_until(lambda: caplog.messages[-1] == f"{endpoint} publishes now")
                said = "\n".join(caplog.messages)
    assert [said.count(says) for says in ("nobody", "has fallen silent", "publishes now")] == [1, 1, 2]


def test_offline_since_is_told_only_where_it_was_seen(monkeypatch):
    """A state that a publisher greets with began whenever it did; one that comes later begins now."""
    monkeypatch.setattr("streampose.view.hub.SILENT_S", 60)
    with Cameras("before", "later") as cameras:
        cameras.kill("before")
        began_s = time.time()
        with Hub(cameras.publisher.endpoint) as hub:
            wait_until(lambda: len(hub.cameras) == 2 and shown_by(hub)["later"]["state"] == "online")
            cameras.kill("later")
            wait_until(lambda: shown_by(hub)["later"]["state"] == "offline")
            assert shown_by(hub)["later"]["changed_s"] >= began_s
            wait_until(lambda: shown_by(hub)["before"]["state"] == "offline")
            assert shown_by(hub)["before"]["changed_s"] == 0
            cameras.publisher.set_state("before", "online")
            cameras.publisher.set_state("before", "offline")
            wait_until(lambda: shown_by(hub)["before"]["changed_s"] >= began_s)


def test_nothing_there_says_so(open_page):
    with serving("tcp://127.0.0.1:1") as address:
        page = open_page(address)
        until(
            page, "document.querySelector('.empty-text').textContent.includes('nobody publishes at tcp://127.0.0.1:1')"
        )
        assert page.is_visible(".empty h2")


def test_a_publisher_with_keys(open_page, tmp_path):
    add_key(tmp_path / "keys", "page", tmp_path / "page.key")
    with Cameras("a", keys=tmp_path / "keys") as cameras:
        with serving(cameras.publisher.endpoint) as address:
            page = open_page(address)
            until(page, "document.querySelector('.empty-text').textContent.includes('only those with a key')")
        with serving(cameras.publisher.endpoint, key=tmp_path / "page.key") as address:
            page = open_page(address)
            until(page, STATE, ["a", "online"])


def get(address, path="/", headers=None):
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=WAIT_S)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_other_machines_need_the_token(open_page):
    with Cameras("a") as cameras, serving(cameras.publisher.endpoint, host="0.0.0.0") as address:
        token = address.split("token=")[1]
        address = f"http://127.0.0.1:{address.split(':')[2].split('/')[0]}/"
        assert len(token) >= 16
        answer, body = get(address)
        assert answer.status == 401
        assert "needs the token" in body
        assert get(address, "/?token=wrong")[0].status == 401
        with (
            websockets.connect(address.replace("http", "ws") + "stream") as socket,
            pytest.raises(ConnectionClosed, match="4403"),
        ):
            socket.recv(WAIT_S)
        answer, _ = get(address, f"/?token={token}")
        assert answer.status == 303
        assert token not in answer.getheader("location")
        assert "HttpOnly" in answer.getheader("set-cookie")
        assert (
            address.split(":")[2].strip("/") in answer.getheader("set-cookie").split("=")[0]
        )  # two pages, two cookies
        page = open_page(address)
        page.fill("#token", token)
        page.click("button")
        until(page, STATE, ["a", "online"])
        assert token not in page.url


@pytest.mark.parametrize("given", [[], ["--token", "this-one-is-given"]])
def test_the_command_shows_the_token_that_it_made(given):
    """On the terminal, where logs hide what looks like a token; a token that was given is not repeated."""
    command = [sys.executable, "-m", "streampose", "view", "--connect", "tcp://127.0.0.1:1", "--port", "0"]
    with subprocess.Popen([*command, "--host", "0.0.0.0", *given], stderr=-1, text=True) as process:
        address = process.stderr.readline().strip().removeprefix("open ")
        where, _, token = address.partition("?token=")
        where = f"http://127.0.0.1:{where.split(':')[2].split('/')[0]}/"
        assert bool(token) is not bool(given)
        assert get(where)[0].status == 401
        assert get(where, f"/?token={token or given[1]}")[0].status == 303
        process.terminate()
        assert (token or given[1]) not in process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_by_tls_when_there_is_a_certificate(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=certificate)
    with (
        Cameras("a") as cameras,
        serving(cameras.publisher.endpoint, token="a-token-of-some-length", certificate=certificate,
                certificate_key=key) as address,
    ):  # fmt: skip
        assert address.startswith("https://")
        assert "a-token" not in address
        port = int(address.split(":")[2].strip("/"))
        connection = http.client.HTTPSConnection("localhost", port, timeout=WAIT_S, context=trust)
        connection.request("GET", "/?token=a-token-of-some-length")
        cookie = connection.getresponse().getheader("set-cookie")
        connection.close()
        assert "Secure" in cookie
        headers = {"Cookie": cookie.split(";")[0]}
        with websockets.connect(
            f"wss://localhost:{port}/stream", ssl=trust, additional_headers=headers, close_timeout=1
        ) as stream:
            wait_until(lambda: "a" in {camera["source"] for camera in json.loads(stream.recv(WAIT_S))["cameras"]})
    with pytest.raises(UsageError, match=r"cannot serve by TLS with --tls-cert .* and --tls-key .*: ."):
        server.serve("tcp://127.0.0.1:1", threading.Event(), print, port=0, certificate=key, certificate_key=key)


def test_no_other_site_gets_in():
    with Cameras("a") as cameras, serving(cameras.publisher.endpoint) as address:
        assert get(address)[0].status == 200
        assert get(address, headers={"Host": "evil.example"})[0].status == 403
        assert "default-src 'none'" in get(address)[0].getheader("content-security-policy")
        assert get(address, "/static/../server.py")[0].status == 404
        stream = address.replace("http", "ws") + "stream"
        with pytest.raises(Exception, match="403"):
            websockets.connect(stream, origin="http://evil.example")
        with websockets.connect(stream) as socket:
            assert json.loads(socket.recv(WAIT_S))["link"]["endpoint"] == cameras.publisher.endpoint
            socket.send("no request")
            with pytest.raises(ConnectionClosed, match="1008"):
                next(message for message in iter(lambda: socket.recv(WAIT_S), None) if message is None)
        with websockets.connect(stream) as socket:
            socket.send(json.dumps({"look": ["a", "not there"]}))
            picture = next(message for message in iter(lambda: socket.recv(WAIT_S), None) if isinstance(message, bytes))
        (length,) = struct.unpack_from("<I", picture)
        assert json.loads(picture[4 : 4 + length])["source"] == "a"
        image = cv2.imdecode(np.frombuffer(picture[4 + length :], np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (*SIZE, 3)


def test_there_is_a_limit_to_browsers(monkeypatch):
    monkeypatch.setattr("streampose.view.app._BROWSERS_LIMIT", 1)
    with Cameras("a") as cameras, serving(cameras.publisher.endpoint) as address:
        stream = address.replace("http", "ws") + "stream"
        with websockets.connect(stream) as first:
            first.recv(WAIT_S)
            with websockets.connect(stream) as second, pytest.raises(ConnectionClosed, match="1013"):
                second.recv(WAIT_S)
            first.recv(WAIT_S)


def test_mistakes_are_told():
    stop = threading.Event()
    with pytest.raises(UsageError, match="at least 12 characters"):
        server.serve("tcp://127.0.0.1:1", stop, print, token="short")
    with pytest.raises(UsageError, match="tcp://HOST:PORT"):
        server.serve("nowhere", stop, print, port=0)
    with pytest.raises(UsageError, match="go together"):
        server.serve("tcp://127.0.0.1:1", stop, print, certificate=os.devnull)
    with (
        serving("tcp://127.0.0.1:1") as address,
        pytest.raises(OutputError, match=r"cannot serve the page at 127\.0\.0\.1:"),
    ):
        server.serve("tcp://127.0.0.1:1", stop, print, port=int(address.split(":")[2].strip("/")))


def test_without_the_extra_it_says_which_one():
    code = "import sys; sys.modules['uvicorn'] = None; sys.argv[1:] = ['view']\nfrom streampose.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr == "error: uvicorn is not installed; install it with: pip install 'streampose[web]'\n"
