"""The live page's server: who may read, what it answers, and that it cannot be made to write."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from analysis.plots_evidence import Evidence
from model.errors import ConfigError
from windtunnel.commands.view import newest_sweep
from windtunnel.report.content import gather
from windtunnel.report.conventions import View, own_view
from windtunnel.view.guard import Guard, is_loopback
from windtunnel.view.live import FIGURE_NAMES, PARTS, Live
from windtunnel.view.server import Server
from windtunnel.view.table import Question, RunTable

HOSTILE = "<script>alert(1)</script>\"'&"


class Reply(SimpleNamespace):
    status: int
    headers: dict[str, str]
    body: str


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    if answer.headers.get("Content-Encoding") == "gzip":
        raw = gzip.decompress(raw)
    return Reply(status=answer.status, headers=dict(answer.headers), body=raw.decode())


@contextmanager
def serving(live: Live) -> Iterator[Server]:
    with Server("127.0.0.1", 0, live) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(finished: Any) -> Iterator[Server]:
    """Serving, brought up to date once; nothing watches on."""
    live = Live(finished.root, "quickstart", every_s=60)
    live.refresh()
    with serving(live) as made:
        yield made


def test_every_section_figure_and_the_chart_are_served(server: Server, finished: Any) -> None:
    state = json.loads(ask(server, "/state").body)
    names = {*PARTS, "chart", *(f"figure-{name}" for name in FIGURE_NAMES)}
    assert set(state["versions"]) == names
    assert state["now"]["counts"] == {"done": len(finished.plan.runs)}
    assert state["now"]["complete"]
    for name in names:
        assert ask(server, f"/part/{name}").status == 200
    chart = json.loads(ask(server, "/part/chart").body)
    assert len(chart["points"]) == len(finished.records)
    figure = ask(server, "/part/figure-isoflop").body
    assert "<svg" in figure
    assert "var(--size-" in figure
    # Where there is no figure, a sentence says why.
    assert "varied neither learning rate nor batch" in ask(server, "/part/figure-recipe").body


def test_the_page_comes_with_the_sections_that_are_ready(server: Server, finished: Any) -> None:
    reply = ask(server, "/", **{"Accept-Encoding": "gzip"})
    assert reply.headers["Content-Encoding"] == "gzip"
    forecast = finished.promotion.forecast
    assert f"{forecast.low:.4f} to {forecast.high:.4f}" in reply.body
    nonce = re.search(r"script-src 'nonce-([^']+)'", reply.headers["Content-Security-Policy"])
    assert nonce is not None
    scripts = re.findall(r"<script(?! type)([^>]*)>", reply.body)
    assert scripts
    assert all(attributes == f' nonce="{nonce[1]}"' for attributes in scripts)
    again = ask(server, "/").headers["Content-Security-Policy"]
    assert nonce[1] not in again


def test_an_empty_part_is_empty(finished: Any) -> None:
    """As the first figure's is while no run has finished; not the whole page inside the page."""
    live = Live(finished.root, "quickstart", every_s=60)
    live._put("figure-loss_compute", b"")
    with serving(live) as server:
        reply = ask(server, "/part/figure-loss_compute")
    assert (reply.status, reply.body) == (200, "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_there_is_no_way_to_write(server: Server, method: str) -> None:
    assert ask(server, "/", method).status == 501


def test_a_head_has_no_body(server: Server) -> None:
    reply = ask(server, "/state", "HEAD")
    assert reply.status == 200
    assert reply.body == ""


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/part/../fit.json",
        "/part/",
        "/plan.json",
        "/runs/",
        "/curve?id=../../x",
        "/%2e%2e/",
    ],
)
def test_no_path_leads_to_a_file(server: Server, path: str) -> None:
    assert ask(server, path).status == 404


def test_only_this_machines_names_are_answered_on_loopback(server: Server) -> None:
    for host in ("evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "10.0.0.1"):
        reply = ask(server, "/state", Host=host)
        assert reply.status == 403
        assert "Only this machine" in reply.body
    for host in ("localhost", "localhost:9", "127.0.0.1:8642", "[::1]:80"):
        assert ask(server, "/state", Host=host).status == 200


def test_bound_wider_only_the_token_opens_it(server: Server) -> None:
    wide = Guard.of("0.0.0.0")
    assert len(wide.token) >= 20
    assert wide.token != Guard.of("0.0.0.0").token
    assert wide.refusal("any.example", wide.token) == ""
    for wrong in ("", wide.token[:-1], wide.token + "x", "é"):
        assert "lacks its token" in wide.refusal("localhost", wrong)
    kept, server.guard = server.guard, wide
    try:
        assert ask(server, "/").status == 403
        assert ask(server, f"/?token={wide.token}").status == 200
        assert ask(server, f"/runs?token={wide.token}&count=1").status == 200
    finally:
        server.guard = kept


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("box.example", False),
        ("", False),
    ],
)
def test_what_counts_as_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_table_is_sorted_filtered_and_paged_on_the_server(
    server: Server, finished: Any
) -> None:
    page = json.loads(ask(server, "/runs?sort=loss&falling=1&count=5").body)
    losses = [row[page["columns"].index("loss")] for row in page["rows"]]
    assert losses == sorted((r.loss_nats for r in finished.records), reverse=True)[:5]
    assert page["found"] == page["total"] == len(finished.records)
    noise = json.loads(ask(server, "/runs?words=NOISE").body)
    assert {row[noise["columns"].index("role")] for row in noise["rows"]} == {"noise"}
    end = json.loads(ask(server, "/runs?first=20&count=50").body)
    assert len(end["rows"]) == len(finished.records) - 20
    odd = json.loads(ask(server, "/runs?sort=__class__&first=-4&count=99999999999&falling=x").body)
    assert odd["first"] == 0
    assert "variant" not in page["columns"]


def test_absent_values_come_last_in_either_direction(finished: Any) -> None:
    content = gather("quickstart", finished.root, made_at="", version="0")
    rows = [replace(content.runs[0], record=None), *content.runs[1:4]]
    for falling in (False, True):
        page = RunTable(rows).window(Question(sort="loss", falling=falling))
        losses = [row[page["columns"].index("loss")] for row in page["rows"]]
        assert losses[-1] is None
        assert losses[:-1] == sorted(losses[:-1], reverse=falling)


def test_windows_of_one_order_meet_without_a_gap(finished: Any) -> None:
    content = gather("quickstart", finished.root, made_at="", version="0")
    table, question = RunTable(content.runs), Question(sort="tokens", falling=True)
    whole = table.window(question, count=200)["rows"]
    parts = [table.window(question, first=n, count=7)["rows"] for n in range(0, len(whole), 7)]
    assert [row for part in parts for row in part] == whole
    assert len(whole) == len(content.runs)
    assert table.holds(content.runs[0].run_id)
    assert not table.holds("nobody")


def test_a_curve_is_thinned_and_an_unknown_run_is_none(server: Server, finished: Any) -> None:
    record = finished.records[-1]
    curve = json.loads(ask(server, f"/curve?id={record.run_id}").body)
    assert 10 < len(curve["tokens"]) == len(curve["loss"]) <= 120
    assert curve["lines"] >= len(curve["tokens"])
    assert ask(server, "/curve?id=nobody").status == 404


def test_what_changes_gets_a_new_version_and_nothing_else_does(
    finished: Any, known_sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    plan = known_sweep.make(root)
    monkeypatch.setattr("windtunnel.view.live.FIGURES", ())
    live = Live(root, "quickstart", every_s=60)
    live.refresh()
    first = json.loads(live.state())
    assert first["now"]["counts"] == {"planned": len(plan.runs)}
    assert "no run has finished" in (live.part("answer") or b"").decode()
    live.refresh()
    assert json.loads(live.state())["versions"] == first["versions"]
    known_sweep.fail(root, plan.runs[0].spec, HOSTILE)
    known_sweep.finish(root, plan.runs[1].spec, known_sweep.measured(plan.runs[1].spec))
    live.refresh()
    later = json.loads(live.state())
    assert later["now"]["counts"] == {"planned": len(plan.runs) - 2, "done": 1, "failed": 1}
    changed = {name for name in PARTS if later["versions"][name] != first["versions"][name]}
    assert {"asked", "answer", "protocol", "unwell"} <= changed
    told = (live.part("unwell") or b"").decode()
    assert "&lt;script&gt;" in told
    assert HOSTILE not in told
    assert plan.runs[0].run_id in told
    assert plan.runs[1].run_id not in told
    assert "ledger" not in changed
    assert len(json.loads(live.part("chart") or b"{}")["points"]) == 1
    assert (
        HOSTILE in json.loads(live.rows(Question(words="failed"), first=0, count=9))["rows"][0][-1]
    )


def test_the_counts_stay_fresh_while_other_conventions_are_fitted(
    finished: Any, known_sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root, root, symlinks=True)
    last = finished.plan.runs[-1].run_id
    shutil.rmtree(root / "runs" / last)
    (root / "index.sqlite").unlink(missing_ok=True)
    monkeypatch.setattr("windtunnel.view.live.FIGURES", ())
    told = []

    def slowly(evidence: Evidence) -> Iterator[View]:
        own = own_view(evidence)
        assert own is not None
        yield own
        known_sweep.fail(root, finished.plan.runs[-1].spec, "lost its node")
        yield own
        told.append(json.loads(live.state())["now"]["counts"])

    monkeypatch.setattr("windtunnel.view.live.views_of", slowly)
    live = Live(root, "quickstart", every_s=60)
    live.refresh()
    assert told == [{"done": len(finished.plan.runs) - 1, "failed": 1}]


def test_an_unknown_sweep_and_an_empty_root_are_one_sentence(finished: Any, tmp_path: Path) -> None:
    assert newest_sweep(finished.root) == "quickstart"
    with pytest.raises(ConfigError, match=r"no sweep to show under .* yet"):
        newest_sweep(tmp_path)
    with pytest.raises(ConfigError, match=r"no such sweep.*quickstart"):
        Live(finished.root, "nope", every_s=1)
