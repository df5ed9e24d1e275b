"""The web page under hostile and ordinary requests: is everyone answered, and how much memory?

    python -m tests.web_load --json=docs/results/data/web.json     # needs diffjax[demo]
    python -m tests.web_load --json=docs/results/data/web.json --page

Starts `diffjax web` on the small model of docs/results/models, sends 200 requests, 8 at a time,
to this machine's own address, and reads the peak of the server's resident memory. Every fourth
request is ordinary; the others are of the kinds in `HOSTILE`, by turns. --page writes the table
into docs/web.md.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image

try:
    import httpx
except ImportError:  # it comes with gradio; --page needs neither
    httpx = None

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "docs/results/models/small-model"
PROMPT = "a large red circle at the left"
BOUND = 1024  # MiB of memory above that after the first image
AT_ONCE, PATIENCE = 8, 300.0
START, END = "<!-- web load: python -m tests.web_load --page -->", "<!-- end of web load -->"


def fields(**changes: Any) -> list[Any]:
    """The values of the page, in the order of `diffjax.cli.web_form.Form`."""
    values = {
        "prompt": PROMPT,
        "negative": "",
        "num": 1,
        "random": False,
        "seed": 1,
        "steps": 2,
        "guidance": 2.0,
        "sampler": "the model's own",
        "height": 0,
        "width": 0,
        "image": None,
        "strength": 0.8,
        "painted": "",
        "mask": None,
        "net": "none",
        "control": None,
        "control_scale": 1.0,
        "loras": [],
        "lora_scale": 1.0,
        **changes,
    }
    return list(values.values())


def picture(size: tuple[int, int]) -> bytes:
    """A black PNG, which is small whatever its size is."""
    stream = io.BytesIO()
    PIL.Image.new("1", size).save(stream, "PNG")
    return stream.getvalue()


class Client:
    """Requests of one user."""

    def __init__(self, url: str):
        self.http = httpx.Client(base_url=url, timeout=PATIENCE)

    def upload(self, content: bytes, name: str = "x.png") -> dict[str, Any] | None:
        """A file for an image field; None if the server refuses it."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        if answer.status_code != 200:
            return None
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def make(self, values: list[Any], *, leave: bool = False) -> str:
        """``done`` with an image, ``refused``, or ``left`` after the first event."""
        body = {"data": values}
        asked = self.http.post("/gradio_api/call/make", json=body)
        if asked.status_code != 200:
            return "refused"
        where = f"/gradio_api/call/make/{asked.json()['event_id']}"
        with self.http.stream("GET", where) as stream:
            event = ""
            for line in stream.iter_lines():
                if leave and line:
                    return "left"
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event == "complete":
                    shown = json.loads(line.removeprefix("data: "))[1]
                    if len(shown) != 1:
                        return "sees images of others"
                    found = self.http.get(shown[0]["image"]["url"])
                    return "done" if PIL.Image.open(io.BytesIO(found.content)) else "refused"
                elif line.startswith("data: ") and event == "error":
                    return "refused"
        return "refused"


def _image(content: bytes) -> Callable[[Client], str]:
    def ask(client: Client) -> str:
        file = client.upload(content)
        return "refused" if file is None else client.make(fields(image=file))

    return ask


def _get(path: str, **headers: str) -> Callable[[Client], str]:
    def ask(client: Client) -> str:
        status = client.http.get(path, headers=headers).status_code
        return "refused" if status >= 400 else f"status {status}"

    return ask


def _post(content: bytes) -> Callable[[Client], str]:
    def ask(client: Client) -> str:
        found = client.http.post(
            "/gradio_api/call/make", content=content, headers={"Content-Type": "application/json"}
        )
        return "refused" if found.status_code >= 400 else f"status {found.status_code}"

    return ask


def _post_chunks(client: Client) -> str:
    """A body that does not say how long it is."""
    found = client.http.post("/gradio_api/queue/join", content=(b"[" * 2**16 for _ in range(2**12)))
    return "refused" if found.status_code >= 400 else f"status {found.status_code}"


def _upload_many(client: Client) -> str:
    """Files that are small enough each, and too much together."""
    files = [("files", (f"{k}.png", bytes(5 * 2**20))) for k in range(40)]
    found = client.http.post("/gradio_api/upload", files=files)
    return "refused" if found.status_code >= 400 else f"status {found.status_code}"


ADDRESS = {"path": "http://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
FOREIGN = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
HOSTILE: dict[str, Callable[[Client], str]] = {
    "100,000 x 100,000 pixels": lambda c: c.make(fields(height=100_000, width=100_000)),
    "one million steps": lambda c: c.make(fields(steps=10**6)),
    "a prompt of 1 MB": lambda c: c.make(fields(prompt="a " * 500_000)),
    "a prompt that is a list": lambda c: c.make(fields(prompt=["a"] * 1000)),
    "numbers that are text": lambda c: c.make(fields(seed="x", guidance="y")),
    "a thousand pictures": lambda c: c.make(fields(num=1000)),
    "a painted mask that is none": lambda c: c.make(fields(painted="data:image/png;base64,AAAA")),
    "too few values": lambda c: c.make([PROMPT]),
    "an upload of 30 MB": _image(random.Random(0).randbytes(30 * 2**20)),
    "a picture of 400 million pixels": _image(picture((20_000, 20_000))),
    "a picture of 25 million pixels": _image(picture((5_000, 5_000))),
    "a file that is no picture": _image(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    "a file of the machine as image": lambda c: c.make(fields(image=FOREIGN)),
    "an address as image": lambda c: c.make(fields(image=ADDRESS)),
    "a file of the machine": _get("/gradio_api/file=/etc/passwd"),
    "the monitoring page": _get("/monitoring/summary"),
    "the run history": _get("/gradio_api/run-history/buckets"),
    "another Host header": _get("/", Host="evil.example"),
    "200 MB of JSON": lambda c: _post(bytes(200 * 2**20))(c),
    "JSON without end": _post_chunks,
    "an upload of 40 files": _upload_many,
    "deep JSON": _post(b"[" * 100_000),
    "no JSON": _post(base64.b64encode(bytes(1000))),
    "a client that leaves": lambda c: c.make(fields(steps=100), leave=True),
}


def peak(pid: int) -> float:
    """The most memory that a process has had, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().split("\n")
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024


def start() -> tuple[subprocess.Popen[bytes], str]:
    """A server on a free port, when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "experiments.web", f"--model={MODEL}", f"--port={port}", "--max_queue=200"]
    server = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return server, url
        except httpx.HTTPError:
            pass
        if server.poll() is not None:
            break
        time.sleep(0.5)
    raise RuntimeError("the server did not start")


def measure(count: int) -> dict[str, Any]:
    """Send requests and count what came of them."""
    server, url = start()
    kinds = list(HOSTILE)
    try:
        assert Client(url).make(fields()) == "done"
        before = peak(server.pid)

        def one(number: int) -> tuple[str, str]:
            if number % 4 == 0:
                return "ordinary", Client(url).make(fields(seed=number))
            kind = kinds[(number - number // 4 - 1) % len(kinds)]
            try:
                return kind, HOSTILE[kind](Client(url))
            except httpx.TransportError:  # closed by the server
                return kind, "refused"

        started = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = Counter(pool.map(one, range(count)))
        last = Client(url).make(fields())
        return {
            "results": [[*pair, number] for pair, number in sorted(results.items())],
            "answers_afterwards": last == "done",
            "seconds": time.monotonic() - started,
            "first_image_mib": before,
            "peak_mib": peak(server.pid),
            "requests": count,
            "at_once": AT_ONCE,
            "bound_mib": BOUND,
            "python": platform.python_version(),
        }
    finally:
        server.terminate()
        server.wait(60)


def check(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    wrong = [
        f"{number} of {kind}: {outcome}"
        for kind, outcome, number in found["results"]
        if outcome != {"ordinary": "done", "a client that leaves": "left"}.get(kind, "refused")
    ]
    more = found["peak_mib"] - found["first_image_mib"]
    wrong += [f"{more:.0f} MiB more than after the first image"] * (more > found["bound_mib"])
    return wrong + ["no answer afterwards"] * (not found["answers_afterwards"])


def table(found: dict[str, Any]) -> str:
    """The figures as text for docs/web.md."""
    rows = [f"| {kind} | {outcome} | {number} |" for kind, outcome, number in found["results"]]
    return "\n".join(
        [
            START,
            f"{found['requests']} requests, {found['at_once']} at a time, on the small model, in "
            f"{found['seconds']:.0f} s on two cores. The server had {found['first_image_mib']:.0f} "
            f"MiB after its first image and {found['peak_mib']:.0f} MiB at most; the bound is "
            f"{found['bound_mib']} MiB more than the first. Afterwards it "
            + ("answered." if found["answers_afterwards"] else "did not answer."),
            "",
            *("| request | came to | times |", "|---|---|---|"),
            *rows,
            END,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="file of the figures")
    parser.add_argument("--requests", type=int, default=200, help="how many to send")
    parser.add_argument("--page", action="store_true", help="write the table into docs/web.md")
    options = parser.parse_args()
    if options.page:
        page = ROOT / "docs/web.md"
        before, _, rest = page.read_text().partition(START)
        text = table(json.loads(options.json.read_text()))
        page.write_text(before + text + rest.partition(END)[2])
        return
    found = measure(options.requests)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    if wrong := check(found):
        sys.exit("\n".join(["not as it should be:", *wrong]))


if __name__ == "__main__":
    main()
