"""The documentation: every command in it runs, links lead somewhere, the reference is fresh."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers

from model.training.data import prepare_corpus
from sweeps.plan import make_plan
from windtunnel import cli, composition, yaml_folders
from windtunnel.commands import sweep

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
QUICK = {
    "sweep": ("ladder.sizes=2", "ladder.budgets=3"),
    "fit": ("fit.starts=400", "fit.replicates=100"),
}
"""Settings a test adds to a command that does not choose them, so that it ends in seconds."""
STAYS = {"view"}
"""Commands that end only when they are interrupted; tests of their own run them."""

Block = tuple[str, str, str]
"""Language, file name after it, text."""


def blocks(page: Path) -> list[Block]:
    found = re.findall(
        r"^```(\w+)(?: (\S+))?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
    )
    return [(language, name, text) for language, name, text in found]


def commands(page: Path) -> Iterator[list[str]]:
    for language, _, text in blocks(page):
        if language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    assert words[0] == "windtunnel", f"{page.name}: {line}"
                    yield words[1:]


def quick(words: list[str]) -> list[str]:
    chosen = {word.partition("=")[0] for word in words}
    small = {"sweep=share", "sweep=sparse", "sweep=squared", "sweep=listed"}
    if "--cfg" in words or (words[0] == "sweep" and small & set(words)):
        return words
    return [*words, *(s for s in QUICK.get(words[0], ()) if s.partition("=")[0] not in chosen)]


def run(words: list[str], allowed: tuple[int, ...]) -> str:
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        code = cli.main(quick(words))
    assert code in allowed, f"windtunnel {' '.join(words)} gave {code}: {screen.getvalue()}"
    return screen.getvalue()


def run_python(page: Path) -> None:
    """A page's blocks of Python, in order, as the cells of one notebook."""
    cells: dict[str, object] = {}
    for language, _, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), cells)


def write_files(page: Path, folder: Path) -> None:
    """What the reader has, and what the page tells them to write."""
    (folder / "notes").mkdir()
    notes = [f"Note {n}, with words of its own: {n * n}, {n**3}.\n" for n in range(600)]
    (folder / "notes" / "all.md").write_text("\n".join(notes))
    if page.name == "own_data.md":
        write_sources(folder)
    for _, name, text in blocks(page):
        if name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


def write_sources(folder: Path) -> None:
    """JSON lines, a table, a folder that `datasets` reads, Megatron's files with a tokenizer."""
    texts = [
        f"Text {n} of {n * n + 7}: " + " ".join(str(n * k) for k in range(90)) for n in range(900)
    ]
    for name, some in (("web/a.jsonl", texts[:400]), ("sets/data.jsonl", texts[400:600])):
        (folder / name).parent.mkdir()
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    (folder / "tables").mkdir()
    table = pyarrow.table({"content": texts[600:800]})
    pyarrow.parquet.write_table(table, folder / "tables" / "t.parquet")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts[:100], trainer)
    model.save(str(folder / "tokenizer.json"))
    documents = [np.array([*model.encode(text).ids, 0], "<u2") for text in texts[:400]]
    lengths = np.array([len(tokens) for tokens in documents], "<i4")
    starts = 2 * (np.cumsum(lengths) - lengths).astype("<i8")
    (folder / "tokens").mkdir()
    (folder / "tokens" / "some.bin").write_bytes(b"".join(tokens.tobytes() for tokens in documents))
    (folder / "tokens" / "some.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 8, len(documents), len(documents) + 1)
        + lengths.tobytes()
        + starts.tobytes()
        + np.arange(len(documents) + 1, dtype="<i8").tobytes()
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # six minutes at a load of 30 on two cores
def test_the_tutorial_and_the_pages_that_go_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order they stand, in one folder; a sweep this small may be refused by its gates."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    told, ran = "", []
    going_on = [DOCS / "howto" / f"{name}.md" for name in ("warnings", "report", "wandb", "python")]
    for page in (DOCS / "tutorial.md", *going_on):
        for words in commands(page):
            if words[0] not in STAYS and words not in ran:
                ran.append(words)
                allowed = {"launch": (0, 4), "status": (0,)}.get(words[0], (0,))
                told += run(words, allowed)
        run_python(page)
    assert "measured" in told
    assert "inside" in told or "OUTSIDE" in told
    assert (tmp_path / "tunnel/sweeps/smoke/report/index.html").exists()
    assert list((tmp_path / "tunnel/wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    "name", ["own_data", "training", "own_ladder", "own_variant", "own_law", "cluster"]
)
def test_the_commands_of_a_how_to_page(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "howto" / f"{name}.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_files(page, tmp_path)
    ran = [run(words, (0,)) for words in commands(page)]
    assert ran
    run_python(page)


NUMBER = re.compile(r"(?<![\w])[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?")
TOOK = re.compile(r"[\d.]+ s\b|[▁-█_]{3,}|─+")
"""What no two runs have alike, times and curves of a few characters, and the rules of tables."""


def squeezed(text: str) -> str:
    return " ".join(TOOK.sub("", text).split())


def shown_like(piece: str, screen: str) -> bool:
    """Whether the words are printed as they are shown, and their numbers within 2 %.

    Not compared where a bootstrap's end lies orders of magnitude away: that is no finding.
    """
    numbers = [float(number) for number in NUMBER.findall(screen)]
    words = NUMBER.sub("#", screen)
    shown = [float(number) for number in NUMBER.findall(piece)]
    for found in re.finditer(re.escape(NUMBER.sub("#", piece)), words):
        first = words[: found.start()].count("#")
        printed = numbers[first : first + len(shown)]
        if all(abs(a - b) <= 0.02 * abs(b) or b > 1e6 for a, b in zip(shown, printed, strict=True)):
            return True
    return False


@pytest.mark.slow
def test_the_tutorial_shows_what_its_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings a reader has; the blocks may leave lines out, but not change them."""
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorial.md"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        for words in commands(page):
            if words[0] not in ("view", "report"):
                assert cli.main(words) in ((0, 4) if words[0] == "launch" else (0,))
    screen = squeezed(printed.getvalue())
    texts = [text for language, _, text in blocks(page) if language == "text"]
    assert len(texts) == 5
    for text in texts:
        for piece in re.split(r"\[?\.\.\.\]?", text):
            assert shown_like(squeezed(piece), screen), piece


def test_the_tutorial_shows_the_runs_of_this_version(tmp_path: Path) -> None:
    shown = re.findall(r"\bw\d+l\d+\S+-[0-9a-f]{12}\b", (DOCS / "tutorial.md").read_text())
    config = composition.load(
        "sweep", sweep.Config, [f"root={tmp_path}", "sweep=smoke"], (yaml_folders.CONF_DIR,)
    )
    planned = sweep.sweep_config(config)
    plan = make_plan(planned, prepare_corpus(planned.corpus, planned.runtime.data_dir))
    assert len(shown) == 3
    assert set(shown) <= {run.run_id for run in plan.runs}


def test_every_page_names_known_commands_and_is_reached_from_the_index() -> None:
    reached = {DOCS / "index.md"}
    for page in PAGES:
        if page.name == "reference.md":
            continue
        for words in commands(page):
            assert words[0] in cli.VERBS
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            if page.name == "index.md":
                reached.add((page.parent / target).resolve())
    assert reached == set(PAGES)


def test_every_warning_is_explained() -> None:
    from analysis.results import FitStatus

    page = (DOCS / "howto" / "warnings.md").read_text()
    assert re.findall(r"^\| `([A-Z_]+)`", page, re.MULTILINE) == [s.name for s in FitStatus]


def test_the_reference_is_up_to_date() -> None:
    command = [sys.executable, str(DOCS / "make_reference.py"), "--check"]
    found = subprocess.run(command, check=False)
    assert found.returncode == 0, "out of date: run `python docs/make_reference.py` and commit it"
