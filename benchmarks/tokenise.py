"""Does preparing a corpus take the same memory whatever its size?

Generates text of the sizes named (MB, as JSON lines of about 4 KB a document), prepares each in a
process of its own, and prints time, rate and the largest resident memory of the process that leads
and of the largest worker; then the time in which the prepared corpus is found and opened again.
Everything is written below a temporary folder (four to five times the text, on TMPDIR) and removed.

Example:
    python benchmarks/tokenise.py 200 1000 --workers 2 --tokenizer bytes
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model.system import peak_memory_bytes
from model.training.corpora import BpeTokenizer, BytesTokenizer, MixtureCorpus
from model.training.data import open_corpus, prepare_corpus
from model.training.sources import JsonlFiles

FILE_BYTES = 64 * 10**6
DOCUMENT_BYTES = 4096
PIECE_BYTES = 64


def write_text(folder: Path, size: int) -> None:
    """Documents of pieces drawn from a megabyte of made-up words: no two are alike."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(20_000)]
    pool = " ".join(rng.choices(words, k=200_000))
    for number in range(max(1, size // FILE_BYTES)):
        left = min(size, FILE_BYTES)
        with (folder / f"{number:04d}.jsonl").open("w") as file:
            while left > 0:
                num_pieces = rng.randint(16, 2 * DOCUMENT_BYTES // PIECE_BYTES - 16)
                starts = [rng.randrange(len(pool) - PIECE_BYTES) for _ in range(num_pieces)]
                text = "".join(pool[at : at + PIECE_BYTES] for at in starts)
                file.write(json.dumps({"text": text}) + "\n")
                left -= len(text)


def prepare(folder: Path, tokenizer: str, workers: int) -> None:
    """Prepare what lies in ``folder`` and print a line of measurements."""
    chosen = BytesTokenizer() if tokenizer == "bytes" else BpeTokenizer(vocab_size=8192)
    corpus = MixtureCorpus(
        sources={"text": JsonlFiles(paths=(str(folder / "text"),))}, tokenizer=chosen
    )
    begin = time.perf_counter()
    prepared = prepare_corpus(corpus, folder / "data", workers=workers)
    took = time.perf_counter() - begin
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    lead_mb, worker_mb = (peak_memory_bytes(who) / 2**20 for who in both)
    cpu_s = sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, both))
    begin = time.perf_counter()
    prepare_corpus(corpus, folder / "data")
    found_s = time.perf_counter() - begin
    begin = time.perf_counter()
    open_corpus(folder / "data", prepared.fingerprint).windows(0, 64, 128)
    opened_s = time.perf_counter() - begin
    size = prepared.domains["text"]
    mb = (size.train_bytes + size.heldout_bytes) / 1e6
    documents = size.train_documents + size.heldout_documents
    print(
        f"{mb:8.0f} MB {documents:9,} documents  {took:7.1f} s  {mb / took:6.1f} MB/s  "
        f"{cpu_s:7.1f} s CPU  peak {lead_mb:5.0f} MB leading, {worker_mb:5.0f} MB largest worker  "
        f"found again {found_s:.2f} s, opened and read {opened_s:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[20, 200], help="MB of text")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", choices=["bytes", "bpe"], default="bytes")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is not None:
        prepare(given.folder, given.tokenizer, given.workers)
        return
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "text").mkdir()
            write_text(folder / "text", size * 10**6)
            own = ["--folder", name, "--tokenizer", given.tokenizer]
            command = [sys.executable, __file__, *own, "--workers", str(given.workers)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
