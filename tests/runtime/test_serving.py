"""Pages as devices, with headless Chromium as phones: two at once, a reload in the middle, a wrong token, a closed tab;
and Node, with the same worker.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest

from edgeopt import compare, profile
from edgeopt.errors import LostError, UsageError, WorkerError
from edgeopt.hardware import target
from edgeopt.listener import Listener
from edgeopt.runtime import devices, serving
from edgeopt.runtime.conformance import conforms
from edgeopt.runtime.devices import Page, visited
from edgeopt.runtime.environments import home_of
from edgeopt.runtime.process import worker
from edgeopt.runtime.worker.page import Bridge, Gone
from tests import tiny

CACHE = os.environ.get("XDG_CACHE_HOME")  # of the user
THERE = home_of(target.load("wasm")) is not None
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_web = pytest.mark.skipif(not THERE, reason="needs edgeopt env wasm")
needs_pages = pytest.mark.skipif(not THERE or CHROMIUM is None, reason="needs edgeopt env wasm and a browser")
DENSE = "g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"


@pytest.fixture(autouse=True)
def users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if CACHE is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", CACHE)
    monkeypatch.setenv("EDGEOPT_MODULES", "")  # what a server sets is gone after the test
    monkeypatch.setattr(serving, "place_of_server", lambda: tmp_path / "served.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    onnx.save(tiny.proto(DENSE, w=w), tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


@dataclass
class Shown:
    """A server, and the addresses that it showed."""

    addresses: list[str] = field(default_factory=list)
    came: list[str] = field(default_factory=list)

    def told(self, address: str, came: str) -> None:
        self.addresses.append(address)
        self.came += [came] if came else []

    def wait(self, count: int) -> None:
        end = time.monotonic() + 60
        while len(self.came) < count and time.monotonic() < end:
            time.sleep(0.05)
        assert len(self.came) == count


@pytest.fixture
def shown() -> Iterator[Shown]:
    found = Shown()
    with serving.serving(found.told):
        yield found


@pytest.fixture
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, address: str) -> Any:
    page = browser.new_context().new_page()
    page.goto(address, wait_until="commit")
    return page


def quick(*models: Path, devices: tuple[str, ...], **how: Any) -> Any:
    function = compare if len(models) * len(devices) > 1 else profile
    return function(*models, devices=devices, seconds=0.4, processes=2, **how)  # type: ignore[call-overload]


@needs_web
@pytest.mark.parametrize("name", ["node:", pytest.param("chromium:", marks=needs_pages)])
def test_a_web_runtime_keeps_to_the_protocol(name: str, tmp_path: Path) -> None:
    with visited([name], {}) as places, worker(places[name]) as w:
        w.greet()
        assert [r for r in conforms(w, tmp_path, places[name].wire, provider="wasm") if r.problem] == []


@needs_web
def test_node_is_a_device_like_another(model: Path) -> None:
    found = quick(model, devices=("local", "node:"))
    here, there = found.measured
    assert not found.failed and there.setting.provider == "wasm" and there.memory is None and there.placement is None
    assert there.size == here.size and there.setting.device == "node:"
    assert found.comparisons[0].outputs[0].sqnr_db > 100 or found.comparisons[0].outputs[0].exact
    with pytest.raises(UsageError, match="whose providers are wasm, webgpu"):
        quick(model, devices=("node:",), providers=("cuda",))


@needs_pages
def test_two_phones_are_two_devices_and_hold_two_models_each(shown: Shown, browser: Any, model: Path) -> None:
    opened(browser, shown.addresses[0])
    shown.wait(1)
    opened(browser, shown.addresses[1])
    shown.wait(2)
    other = shutil.copy(model, model.with_name("other.onnx"))
    found = quick(model, Path(other), devices=("browser", "browser-2"))
    assert not found.failed and len(found.measured) == 4 and found.devices.keys() == {"browser", "browser-2"}
    assert all(c.interleaved for c in found.comparisons) and "Chrome" in found.devices["browser-2"].cpu


@needs_pages
def test_a_link_is_one_devices_until_its_page_is_closed(shown: Shown, browser: Any, tmp_path: Path) -> None:
    first = opened(browser, shown.addresses[0])
    shown.wait(1)
    second = opened(browser, shown.addresses[0])
    second.wait_for_function("document.getElementById('now').textContent.includes('in use on another device')")
    with worker(Page(name="browser")) as w:
        assert w.greet()["browser"]
    first.close()
    end = time.monotonic() + 20
    while serving.about("browser") is not None and time.monotonic() < end:
        time.sleep(0.1)
    assert serving.about("browser") is None
    second.reload(wait_until="commit")
    assert serving.wait_for("browser", 30)


@needs_pages
@pytest.mark.parametrize("what", ["reload", "close"])
def test_a_page_that_is_reloaded_is_lost_and_the_run_goes_on_and_one_that_is_closed_is_told(
    what: str, shown: Shown, browser: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "BACK_S", 30.0 if what == "reload" else 2.0)
    page = opened(browser, shown.addresses[0])
    shown.wait(1)
    now, done = threading.Event(), threading.Event()
    results: list[Any] = []

    def measure() -> None:
        ears = Listener(progress=lambda stage, at, of: now.set() if (stage, at) == ("measuring", 1) else None)
        results.append(profile(model, devices=("browser",), seconds=3.0, processes=4, listener=ears))
        done.set()

    threading.Thread(target=measure).start()
    while not now.wait(0.05):
        page.wait_for_timeout(50)
    page.wait_for_timeout(300)
    page.reload(wait_until="commit") if what == "reload" else page.close()
    while not done.wait(0.05):
        browser.contexts and (what == "close" or page.wait_for_timeout(50))
    (found,) = results
    assert (found.measured[0].error is None) == (what == "reload")
    assert any("was lost" in note for note in found.notes) and found.measured[0].latency is not None


@needs_pages
def test_a_page_gets_the_files_of_the_run_and_nothing_else(shown: Shown, browser: Any, tmp_path: Path) -> None:
    opened(browser, shown.addresses[0])
    shown.wait(1)
    url = urlsplit(shown.addresses[0])
    token = url.path.strip("/")
    (tmp_path / "secret").write_text("x", encoding="utf-8")

    def status(path: str, method: str = "GET", **headers: str) -> int:
        line = http.client.HTTPConnection("127.0.0.1", url.port or 0, timeout=10)
        line.request(method, path, headers=headers)
        with contextlib.closing(line):
            return line.getresponse().status

    assert status(f"/{token}/") == 200 and status(f"/{token}/web.mjs") == 200
    assert status("/wrong/") == status("/") == status("/wrong/web.mjs") == 404
    assert status(f"/{token}/keeper.py") == status(f"/{token}/ort/../x.mjs") == 409
    assert status(f"/{token}/next") == status(f"/{token}/answer?n=1", "POST") == 409  # not the page of the token
    assert status(f"/{token}/file?path={tmp_path}/secret", **{"X-Page": "0" * 32 + "-" + "0" * 32}) == 409
    with worker(Page(name="browser")) as w, pytest.raises(WorkerError, match=r"not served|secret"):
        w.ask("open", model=str(tmp_path / "absent"), provider="wasm")
    bridge = Bridge()
    tab, first, second = ("a" * 32, "b" * 32, "c" * 32)
    assert not bridge.is_of(f"{tab}-{first}") and bridge.is_of(f"{tab}-{first}", loads=True)
    assert bridge.is_of(f"{tab}-{first}") and not any(
        map(bridge.is_of, ("", "-", tab, "not a number", f"{tab}-{second}"))
    )
    assert bridge.is_of(f"{tab}-{second}", loads=True) and not bridge.is_of(f"{tab}-{first}")  # the later load
    with pytest.raises(Gone):
        bridge.ask('{"do": "hello"}')


@needs_web
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_over_https_a_client_that_says_nothing_stops_nobody(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    found = Shown()
    with serving.serving(found.told, certificate=(cert, key)):
        url = urlsplit(found.addresses[0])
        assert url.scheme == "https"
        with socket.create_connection(("127.0.0.1", url.port or 0)):
            context = ssl.create_default_context(cafile=str(cert))
            context.check_hostname = False
            line = http.client.HTTPSConnection("127.0.0.1", url.port or 0, timeout=5, context=context)
            line.request("GET", url.path)
            with contextlib.closing(line):
                assert line.getresponse().status == 200


@needs_web
def test_a_server_listens_to_both_kinds_of_addresses() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    found = Shown()
    with serving.serving(found.told, "::1"):
        assert found.addresses[0].startswith("http://[::1]:")


@needs_web
def test_a_server_is_one_and_says_what_it_cannot(shown: Shown, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs already"), serving.serving(shown.told):
        pass
    assert (tmp_path / "served.json").stat().st_mode & 0o777 == 0o600
    assert serving.about("browser") is None
    with pytest.raises(WorkerError, match="no device 'browser' has opened its address"), worker(Page(name="b")) as w:
        w.greet()
    with pytest.raises(LostError, match="its page is not open"):
        Page(name="b").machine()


@needs_web
def test_without_a_server_the_command_that_starts_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="run: edgeopt device serve"), worker(Page(name="browser")) as w:
        w.greet()
    (tmp_path / "cert").write_text("none", encoding="utf-8")
    with pytest.raises(UsageError, match="--listen"), serving.serving(print, certificate=(tmp_path / "cert",) * 2):
        pass
    with pytest.raises(UsageError, match="--listen 203"), serving.serving(print, "203.0.113.1"):
        pass
    assert not (tmp_path / "served.json").exists()
