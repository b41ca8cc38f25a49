"""The source a corpus config asks for."""

from __future__ import annotations

from typing import assert_never

from model.errors import ConfigError
from model.training.corpora import (
    CorpusConfig,
    MixtureCorpus,
    StdlibCorpus,
    SyntheticCorpus,
    TextCorpus,
)
from model.training.data.arithmetic import arithmetic
from model.training.data.documents import JobList, Source
from model.training.data.files import Hashes
from model.training.data.jsonl import jsonl_files
from model.training.data.megatron import megatron_files
from model.training.data.stdlib import stdlib_parts
from model.training.data.synthetic import SyntheticSource
from model.training.data.tables import hub_dataset, parquet_files
from model.training.data.text import text_corpus, text_files
from model.training.sources import (
    Arithmetic,
    HubDataset,
    JsonlFiles,
    MegatronFiles,
    ParquetFiles,
    SourceConfig,
    StdlibPart,
    TextFiles,
)


def source_of(corpus: CorpusConfig, hashes: Hashes) -> Source:
    """What gives the documents of ``corpus``.

    Raises:
        ConfigError: for what can be seen to be wrong without reading the text.
    """
    match corpus:
        case StdlibCorpus():
            return stdlib_parts({"code": "code", "prose": "prose"}, hashes)
        case TextCorpus():
            return text_corpus(corpus, hashes)
        case SyntheticCorpus():
            return SyntheticSource(corpus)
        case MixtureCorpus(sources=sources):
            lists = [_jobs_of(source, name, hashes) for name, source in sources.items()]
            return JobList(tuple(job for each in lists for job in each.listed))
        case _:
            assert_never(corpus)


def _jobs_of(source: SourceConfig, name: str, hashes: Hashes) -> JobList:
    domain, where = source.domain or name, f"data.sources.{name}"
    if not isinstance(source, Arithmetic | StdlibPart | HubDataset) and not source.paths:
        raise ConfigError(f"{where}.paths: empty; name the files, folders or globs to train on")
    match source:
        case TextFiles():
            return text_files(source, domain, where, hashes)
        case JsonlFiles():
            return jsonl_files(source, domain, where, hashes)
        case ParquetFiles():
            return parquet_files(source, domain, where, hashes)
        case HubDataset():
            return hub_dataset(source, domain, where, hashes)
        case MegatronFiles():
            return megatron_files(source, domain, where, hashes)
        case StdlibPart(part=part):
            return stdlib_parts({part: domain}, hashes)
        case Arithmetic():
            return arithmetic(source, domain)
        case _:
            assert_never(source)
