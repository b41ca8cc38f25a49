"""What a prepared corpus says of itself, and how it is opened again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.training.corpora import CorpusConfig
from model.training.data.corpus import DomainSize, PreparedCorpus
from model.training.data.documents import sha256
from model.training.data.tokenizers import codec_from_json
from model.training.data.tokens import Tokens, damaged, shards_from
from model.training.sources import DataStage
from model.typed import build

FORMAT = 1
"""Raised when the same material would be cut, split or ordered differently than before."""
LAYOUT = 2
"""Raised when the files of a prepared corpus change; what is in them may be the same."""

SIDES = ("train", "heldout")

CHECKED_AT_ONCE_BYTES = 2**28
"""A corpus up to this size is checked whole when it is opened (a third of a second); of a larger
one the held-out side is, and the rest block by block as it is first read."""


def open_corpus(data_dir: Path, fingerprint: str) -> PreparedCorpus:
    """A corpus prepared before, its shards mapped into memory and held against their hashes.

    Raises:
        ConfigError: when it is not there, or its files are not what was written.
    """
    folder = data_dir / fingerprint
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        tokenizer_text = (folder / "tokenizer.json").read_text()
        if manifest["layout"] != LAYOUT:
            raise KeyError(f"layout {LAYOUT}, it has {manifest['layout']}")
        tokens = {
            (domain, side): Tokens(folder, shards_from(entry[side]["shards"]), entry[side]["dtype"])
            for domain, entry in manifest["domains"].items()
            for side in SIDES
        }
    except FileNotFoundError as error:
        if folder.exists():
            raise damaged(folder, f"{Path(error.filename).name} is missing") from None
        raise ConfigError(
            f"data: corpus {fingerprint} is not prepared under {data_dir}; "
            "run the sweep command again to prepare it"
        ) from None
    except KeyError as error:
        raise damaged(folder, f"the manifest lacks {error.args[0]}") from None
    except ConfigError:
        raise
    except ValueError as error:
        raise damaged(folder, str(error)) from None
    if fingerprint_of(manifest) != fingerprint:
        raise damaged(folder, "the manifest was changed")
    if sha256(tokenizer_text.encode()) != manifest["tokenizer_sha256"]:
        raise damaged(folder, "the tokenizer was changed")
    is_small = sum(each.nbytes for each in tokens.values()) <= CHECKED_AT_ONCE_BYTES
    for (_, side), each in tokens.items():
        if is_small or (side == "heldout" and each.nbytes <= CHECKED_AT_ONCE_BYTES):
            each.check_all()
    return PreparedCorpus(
        fingerprint=fingerprint,
        text_fingerprint=text_fingerprint_of(manifest),
        codec=codec_from_json(tokenizer_text),
        domains={
            domain: DomainSize(
                **{
                    f"{side}_{what}": entry[side][what]
                    for side in SIDES
                    for what in ("tokens", "bytes", "documents")
                }
            )
            for domain, entry in manifest["domains"].items()
        },
        weights=manifest["weights"],
        stages=tuple(build(DataStage, stage) for stage in manifest["stages"]),
        report=manifest["report"],
        entropy_by_context=tuple(manifest["entropy_by_context"]),
        train={domain: tokens[domain, "train"] for domain in manifest["domains"]},
        heldout_tokens={domain: tokens[domain, "heldout"] for domain in manifest["domains"]},
    )


def is_current(folder: Path) -> bool:
    """Whether the folder holds a corpus in the present layout; whether it is whole is not asked."""
    try:
        return bool(json.loads((folder / "manifest.json").read_bytes())["layout"] == LAYOUT)
    except (OSError, ValueError, KeyError):
        return False


def mixture_weights(corpus: CorpusConfig, domains: Mapping[str, Any]) -> dict[str, float]:
    """The given weights in the order of the domains; else the mean of the stages; else in
    proportion to the training tokens.

    Raises:
        ConfigError: weights or stages name other domains than the corpus has.
    """
    for index, stage in enumerate(corpus.stages):
        _require_domains(f"data.stages.{index}.weights", stage.weights, domains)
    if corpus.weights is not None:
        _require_domains("data.weights", corpus.weights, domains)
        return {domain: corpus.weights[domain] for domain in domains}
    if corpus.stages:
        return {d: math.fsum(s.frac * s.weights[d] for s in corpus.stages) for d in domains}
    total = sum(entry["train"]["tokens"] for entry in domains.values())
    return {domain: entry["train"]["tokens"] / total for domain, entry in domains.items()}


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """16 hex digits that are equal exactly when runs see the same."""
    visible = [
        manifest["format"],
        manifest["vocab_size"],
        manifest["tokenizer_sha256"],
        manifest["weights"],
        {
            domain: [entry[side]["sha256"] for side in SIDES]
            for domain, entry in manifest["domains"].items()
        },
    ]
    if manifest["stages"]:
        visible.append(manifest["stages"])
    text = json.dumps(visible, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode())[:16]


def text_fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """The same of the tokens alone, in whatever shares runs read them."""
    return fingerprint_of({**manifest, "weights": {}, "stages": []})


def _require_domains(where: str, given: Mapping[str, float], domains: Mapping[str, Any]) -> None:
    if given.keys() != domains.keys():
        unknown = sorted(given.keys() - domains.keys())
        missing = sorted(domains.keys() - given.keys())
        problem = f"unknown domain {unknown[0]!r}" if unknown else f"domain {missing[0]!r} missing"
        raise ConfigError(f"{where}: {problem}; this corpus has: {', '.join(domains)}")
