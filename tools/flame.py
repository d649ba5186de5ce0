"""Where the time goes while events come in: `python -m tools.flame [--seconds 20] [--kafka] [--folder docs/images]`.

Samples API process and worker with py-spy during ingest over HTTP as fast as it goes, and writes flame-api.svg and
flame-worker.svg (`--kafka`: flame-kafka-*.svg, the log on a real broker); prints for each the modules with most of the
time, in tables that Markdown reads. Threads that wait are left out: what is counted is running, or waiting for the
disk. At the end the tables are compared with the ground truth, as in every row of `make bench`.

py-spy does not stop the processes while it looks: it would wake the threads that wait, and count them.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

from tests.bench.context import Bench
from tests.bench.corpus import Corpus
from tests.bench.end_to_end import Reader
from tests.bench.load_fresh import Stretch
from tests.bench.passes import Pass
from tests.bench.programs import Failed, Meter
from tests.bench.results import CPU
from tests.support.traffic import BATCH
from tools.kafka import Broker
from tools.kafka_jars import NoKafka

FOLDER: Final = Path(__file__).resolve().parent.parent / "docs" / "images"
ROLES: Final = ("api", "worker")
RATE: Final = 200
"""Samples a second."""
WARM_UP: Final = 4.0
START: Final = 2.0
"""Seconds that py-spy may take to start and to end; the load lasts longer by so much."""
SHOWN: Final = 20
"""Modules in a table."""

WIDTH: Final = 1200
ROW: Final = 17
LETTER: Final = 6.7
"""Pixels of a letter."""
LEAST: Final = 0.002
"""Share of all samples below which a frame is not drawn."""
COLOURS: Final = {"processor": "#fdba74", "server": "#93c5fd", "thread": "#d1d5db", "": "#e5e7eb"}
CSS: Final = "text{font:11px monospace;fill:#111827}"

Stacks = Mapping[tuple[str, ...], int]
"""Frames from the thread down -> samples. A frame is `function (file)`, a thread `thread NAME`."""


# --- from py-spy's words ---------------------------------------------------------------------------------------------


_FRAME: Final = re.compile(r"(?P<function>.+) \((?P<file>[^()]*?)(:\d+)?\)").fullmatch
_THREAD: Final = re.compile(r"thread \([^)]*\)(: (?P<name>.+?)(_\d+)?)?").fullmatch
_ELSEWHERE: Final = re.compile(r".*/(site-packages|python3\.\d+)/")
_LOOP: Final = "Runner.run (asyncio/runners.py)"


def read(raw: str, root: Path) -> Stacks:
    """What py-spy writes with `--format raw`, without line numbers, directories and what every stack starts with."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in raw.splitlines():
        words, _, count = line.rpartition(" ")
        thread, *frames = words.split(";")
        found = _THREAD(thread)
        name = (found["name"] if found else None) or "without a name"
        tidy = [_tidy(frame, root) for frame in frames]
        if _LOOP in tidy:
            tidy = ["event loop (asyncio)", *tidy[tidy.index(_LOOP) + 1 :]]
        stacks[(f"thread {name}", *tidy)] += int(count)
    return stacks


def _tidy(frame: str, root: Path) -> str:
    found = _FRAME(frame)
    if found is None:
        return frame
    file = _ELSEWHERE.sub("", found["file"].removeprefix(f"{root}/"))
    return f"{found['function']} ({file if not file.startswith('/') else Path(file).name})"


def module_of(frame: str) -> str:
    """A file of ours, or the package that the frame is of."""
    found = _FRAME(frame)
    if found is None:
        return frame
    top = found["file"].partition("/")[0]
    return found["file"] if top in ("processor", "server", "protos") else top.removesuffix(".py")


# --- the table -------------------------------------------------------------------------------------------------------


def by_module(stacks: Stacks) -> list[tuple[str, float, float]]:
    """(module, % of the samples in itself, % in it and in what it calls), most of itself first."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    for frames, count in stacks.items():
        modules = [module_of(frame) for frame in frames[1:]] or ["?"]
        own[modules[-1]] += count
        inclusive.update(dict.fromkeys(modules, count))
    total = sum(stacks.values())
    found = [(name, 100 * own[name] / total, 100 * count / total) for name, count in inclusive.items()]
    return sorted(found, key=lambda row: (-row[1], -row[2], row[0]))


def table(title: str, stacks: Stacks) -> str:
    """The modules with most of the time, for Markdown."""
    rows = [f"| {title} | itself, % | with what it calls, % |", "| --- | --- | --- |"]
    rows += [f"| {name} | {own:.1f} | {whole:.1f} |" for name, own, whole in by_module(stacks)[:SHOWN]]
    return "\n".join(rows)


# --- the picture -----------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A frame where it was called from."""

    count: int = 0
    below: dict[str, "Node"] = field(default_factory=dict)


def tree(stacks: Iterable[tuple[tuple[str, ...], int]]) -> Node:
    root = Node()
    for frames, count in stacks:
        node = root
        node.count += count
        for frame in frames:
            node = node.below.setdefault(frame, Node())
            node.count += count
    return root


def draw(title: str, stacks: Stacks) -> str:
    """A flame graph, callers above: as wide as its time; of ours in colour, with its name and share under the mouse."""
    root = tree(sorted(stacks.items()))
    boxes: list[str] = []
    deepest = _boxes(root, root.count, 0.0, 2, boxes)
    height = (deepest + 1) * ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    words = f'<text x="4" y="14">{escape(title)}: {root.count:,} samples</text>'
    return "\n".join(
        [head, f"<style>{CSS}</style>", '<rect width="100%" height="100%" fill="#ffffff"/>', words, *boxes, "</svg>\n"]
    )


def _boxes(node: Node, total: int, left: float, level: int, boxes: list[str]) -> int:
    """Draw what is below a node; returns the deepest level."""
    deepest = level
    for name, child in node.below.items():
        share = child.count / total
        width = share * WIDTH
        if share >= LEAST:
            colour = COLOURS.get(re.split(r"[ /]", module_of(name))[0], COLOURS[""])
            letters = int((width - 4) / LETTER)
            shown = name if len(name) <= letters else name[: letters - 1] + "…" if letters > 2 else ""
            label = f'<text x="{left + 2:.1f}" y="{level * ROW - 5}">{escape(shown)}</text>' if shown else ""
            boxes.append(
                f"<g><title>{escape(name)}: {100 * share:.1f} %</title>"
                f'<rect x="{left:.1f}" y="{(level - 1) * ROW}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}" '
                f'fill="{colour}"/>{label}</g>'
            )
            deepest = max(deepest, _boxes(child, total, left, level + 1, boxes))
        left += width
    return deepest


# --- the run ---------------------------------------------------------------------------------------------------------


def record(seconds: float, on_kafka: bool, directory: Path) -> tuple[dict[str, Stacks], dict[str, float], float]:
    """Stacks by role, µs of CPU an event by role, and events a second. Raises `Failed`, `NoKafka`."""
    bench, made = Bench(directory, Corpus(directory, 0)), Pass.make()
    with ExitStack() as stack:
        log = {"broker": stack.enter_context(Broker(directory / "broker")).url} if on_kafka else {}
        server, said = stack.enter_context(bench.server("serve", settings=log))
        [load] = stack.enter_context(bench.fresh_loads(said, made))
        roles = server.roles()
        load.tell(Stretch(seconds=WARM_UP))
        warm = load.outcome()
        load.tell(Stretch(seconds=seconds + START))
        meter = Meter({role: roles[role] for role in ROLES})
        spies = {role: _spy(roles[role], seconds, directory / f"{role}.raw") for role in ROLES}
        outcome = load.outcome()
        used = meter.figures(outcome.accepted, outcome.ended - outcome.began)
        for spy in spies.values():
            said_by_it = spy.communicate()[0]
            if spy.returncode:
                raise Failed(f"py-spy ended with {spy.returncode}:\n{said_by_it}")
        truth = made.truth(made.counted_first((warm.accepted + outcome.accepted) // BATCH))
        reader = Reader(said)
        reader.wait_for(truth.unique)
        reader.compare(truth)
        found = {role: read((directory / f"{role}.raw").read_text(), FOLDER.parents[1]) for role in ROLES}
        rate = outcome.accepted / (outcome.ended - outcome.began)
        return found, {role: used[f"{CPU}{role}"] for role in ROLES}, rate


def _spy(pid: int, seconds: float, path: Path) -> "subprocess.Popen[str]":
    spy = Path(sys.executable).with_name("py-spy")
    options = ["--format", "raw", "--function", "--threads", "--nonblocking", "--rate", str(RATE)]
    return subprocess.Popen(
        [spy, "record", "--pid", str(pid), "--duration", str(round(seconds)), *options, "--output", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.flame", description="Flame graphs of ingest.")
    parser.add_argument("--seconds", type=float, default=20.0, help="that are sampled (20)")
    parser.add_argument("--kafka", action="store_true", help="with the log on a real Kafka broker")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go (docs/images)")
    given = parser.parse_args(arguments)
    began = time.strftime("%Y-%m-%d", time.gmtime())
    with tempfile.TemporaryDirectory(prefix="spendstream-flame-") as directory:
        try:
            found, used, rate = record(given.seconds, given.kafka, Path(directory))
        except (Failed, NoKafka) as error:
            print(error, file=sys.stderr)
            return 1
    given.folder.mkdir(parents=True, exist_ok=True)
    for role, stacks in found.items():
        path = given.folder / f"flame{'-kafka' if given.kafka else ''}-{role}.svg"
        title = f"{role}, {began}, {rate:,.0f} events/s, {used[role]:.1f} µs of CPU an event"
        path.write_text(draw(title, stacks))
        print(f"\n{title}\n\n{table(role, stacks)}")
        print(path, path.stat().st_size, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
