"""What a system that is not asked, or does not answer, is taken to say."""

import resource
import sys

import pytest

from model import system


def test_a_command_that_is_not_there_or_fails_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.said_by("no-such-command") is None
    assert system.said_by("sh", "-c", "echo bad oid >&2; exit 1") is None
    assert system.said_by("sh", "-c", "exit 1") == ""
    assert system.said_by("sh", "-c", "date +%Z; echo $LC_ALL") == "UTC\nC"
    monkeypatch.setattr(system, "ANSWER_S", 0.1)
    assert system.said_by("sleep", "5") is None


@pytest.mark.usefixtures("on_a_mac")
def test_a_mac_says_what_linux_has_in_files() -> None:
    assert system.cpu_name() == "Apple M2"
    assert system.cpu_features() == {"asimd", "bf16"}
    assert system.sysctl("no.such.name") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's own files")
def test_linux_is_not_asked_by_sysctl() -> None:
    assert system.sysctl("kern.ostype") == ""
    assert {"avx2", "asimd"} & system.cpu_features()


def test_the_most_memory_is_in_bytes_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    monkeypatch.setattr(system, "is_macos", lambda: False)
    in_kib = system.peak_memory_bytes()
    assert 10 * 2**20 < in_kib < 2**40
    monkeypatch.setattr(system, "is_macos", lambda: True)
    fields = list(usage)
    fields[2] = 123_456_789
    monkeypatch.setattr(resource, "getrusage", lambda who: resource.struct_rusage(fields))
    assert system.peak_memory_bytes() == 123_456_789
