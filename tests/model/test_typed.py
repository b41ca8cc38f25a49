"""The strict builder: what goes in comes back, and everything else is named by its path."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from model.errors import ConfigError
from model.typed import build, build_union, to_plain


@dataclass(frozen=True, kw_only=True)
class Circle:
    kind: Literal["circle"] = "circle"
    radius: float


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"] = "square"
    side: int

    def __post_init__(self) -> None:
        if self.side <= 0:
            raise ConfigError(f"side must be positive, got {self.side}")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    name: str
    shape: Circle | Square
    layers: tuple[Square, ...] = ()
    pair: tuple[int, str] = (1, "a")
    share: dict[str, float] | None = None
    mode: Literal["fast", "slow"] = "fast"
    visible: bool = True
    folder: Path = Path("here")


FULL = {
    "name": "plan",
    "shape": {"kind": "square", "side": 3},
    "layers": [{"side": 1}, {"side": 2}],
    "pair": [7, "b"],
    "share": {"left": 0.25, "right": 1},
    "mode": "slow",
    "visible": False,
    "folder": "there",
}


def test_round_trip_through_json() -> None:
    drawing = build(Drawing, FULL)
    assert drawing.shape == Square(side=3)
    assert drawing.layers == (Square(side=1), Square(side=2))
    assert drawing.share == {"left": 0.25, "right": 1.0}
    assert drawing.folder == Path("there")
    assert build(Drawing, json.loads(json.dumps(to_plain(drawing)))) == drawing


def test_a_path_in_the_home_folder_is_found_although_no_shell_expands_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    mapping = {**FULL, "folder": "~/runs"}
    assert build(Drawing, mapping).folder == Path("/home/somebody/runs")


def test_defaults_fill_what_is_left_out() -> None:
    drawing = build(Drawing, {"name": "x", "shape": {"kind": "circle", "radius": 2}})
    assert drawing.shape == Circle(radius=2.0)
    assert drawing.mode == "fast"
    assert drawing.share is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "x"}, r"^nam: unknown field; did you mean name\? Allowed: folder, layers, mode"),
        ({"shape": {"kind": "square", "sid": 1}}, r"^shape\.sid: unknown field; did you mean side"),
        ({"shape": {"kind": "oval"}}, r"^shape\.kind: 'oval' is not one of: circle, square"),
        ({"shape": 3}, r"^shape\.kind: None is not one of: circle, square"),
        ({"shape": {"kind": "square", "side": -1}}, r"^shape: side must be positive, got -1"),
        ({"shape": {"kind": "square", "side": 1.5}}, r"^shape\.side: expected a whole number"),
        ({"shape": {"kind": "square", "side": True}}, r"^shape\.side: expected a whole number"),
        ({"shape": {"kind": "circle", "radius": float("nan")}}, r"^shape\.radius: .*finite"),
        ({"shape": {"kind": "circle", "radius": "2"}}, r"^shape\.radius: expected a number"),
        ({"layers": [{"side": 1}, {}]}, r"^layers\[1\]\.side: missing"),
        ({"layers": "abc"}, r"^layers: expected a list like \[a,b\], got 'abc'"),
        ({"pair": [1]}, r"^pair: expected 2 values, got 1"),
        ({"share": {"left": "much"}}, r"^share\.left: expected a number, got 'much'"),
        ({"share": 3}, r"^share: expected a mapping, got 3"),
        ({"mode": "swift"}, r"^mode: 'swift' is not one of: fast, slow"),
        ({"visible": 1}, r"^visible: expected true or false, got 1"),
        ({"name": None}, r"^name: expected text, got None"),
    ],
)
def test_refusals_name_the_path(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Drawing, {**FULL, **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^name: missing; give it a value \(text\)"):
        build(Drawing, {"shape": {"kind": "square", "side": 3}})


def test_whole_floats_count_as_whole_numbers() -> None:
    square = build(Square, {"side": 1e9})
    assert square.side == 1_000_000_000
    assert isinstance(square.side, int)


def test_union_at_the_top() -> None:
    assert build_union(Circle | Square, {"kind": "circle", "radius": 1}) == Circle(radius=1.0)


def test_not_a_mapping() -> None:
    with pytest.raises(ConfigError, match="config: expected a mapping, got 3"):
        build(Drawing, 3)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    exact: float | None = None
    many: tuple[float, ...] = ()
    holes: tuple[float | None, ...] = ()
    counts: tuple[int, ...] = ()


def test_values_that_are_taken_as_they_are_are_checked_all_the_same() -> None:
    """Files are read by a short way where every value has its type already."""
    read = build(Numbers, {"exact": 2, "many": [1, 2.5], "holes": [None, 1.0], "counts": [3, 4.0]})
    assert read == Numbers(exact=2.0, many=(1.0, 2.5), holes=(None, 1.0), counts=(3, 4))
    assert [type(value) for value in (read.exact, *read.many)] == [float] * 3
    assert [type(value) for value in read.counts] == [int] * 2
    for field, value, where in [
        ("exact", math.inf, "exact"),
        ("exact", True, "exact"),
        ("many", [1.0, math.nan], "many[1]"),
        ("many", [1.0, True], "many[1]"),
        ("many", [None], "many[0]"),
        ("holes", [None, math.inf], "holes[1]"),
        ("counts", [1, False], "counts[1]"),
        ("counts", "12", "counts"),
    ]:
        with pytest.raises(ConfigError, match=f"^{re.escape(where)}: "):
            build(Numbers, {field: value})
