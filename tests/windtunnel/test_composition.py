"""Composition: groups and overrides as Hydra users know them, one line for whatever is wrong."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from model.errors import ConfigError
from windtunnel import composition
from windtunnel.commands import compare as compare_command
from windtunnel.commands import launch as launch_command
from windtunnel.composition import compose, load
from windtunnel.yaml_folders import CONF_DIR, config_dirs, verb_groups, verb_help


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: int
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Verb:
    name: str
    ladder: Inner
    axes: dict[str, tuple[float, ...]]
    paths: tuple[str, ...] = ()


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, ...]:
    """A shipped folder with two verbs (one takes the ladder's name as a plain value)."""
    files = {
        "climb.yaml": "defaults: [{ladder: small}, _self_, {plan: null}]\nname: x\naxes: {}\n"
        "paths: ???\n",
        "look.yaml": "ladder: null\n",
        "ladder/small.yaml": "# Two sizes.\nsizes: 2\nratio: 2.0\n",
        "ladder/large.yaml": "sizes: 20\nratio: 2.0\n",
        "plan/wide.yaml": "# @package _global_\n# Wide.\ndefaults: [{override /ladder: large}]\n"
        "ladder: {ratio: 3.0}\npaths: [a]\n",
        "plan/tall.yaml": "# @package _global_\npaths: []\naxes: {ladder.ratio: [2.0, 3.0]}\n",
    }
    shipped = tmp_path / "shipped with 'quotes'"
    for name, text in files.items():
        (shipped / name).parent.mkdir(parents=True, exist_ok=True)
        (shipped / name).write_text(text)
    return (shipped,)


def climb(dirs: tuple[Path, ...], *overrides: str) -> Verb:
    return load("climb", Verb, overrides, dirs)


def test_groups_overlays_and_values_compose_in_hydras_order(dirs: tuple[Path, ...]) -> None:
    assert climb(dirs, "paths=[a,b]").ladder == Inner(sizes=2, ratio=2.0)
    assert climb(dirs, "plan=wide").ladder == Inner(sizes=20, ratio=3.0)
    # The command line wins over the overlay, whatever the order.
    chosen = climb(dirs, "ladder.sizes=4", "plan=wide", "ladder=small")
    assert chosen == Verb(name="x", ladder=Inner(sizes=4, ratio=3.0), axes={}, paths=("a",))


def test_the_users_folder_stands_in_front_and_adds_options(
    dirs: tuple[Path, ...], tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    (mine / "ladder").mkdir(parents=True)
    (mine / "ladder" / "mine.yaml").write_text("sizes: 7\nratio: 1.5\n")
    (mine / "ladder" / "small.yaml").write_text("sizes: 3\nratio: 2.0\n")
    both = (mine, *dirs)
    assert climb(both, "plan=wide", "ladder=mine").ladder.sizes == 7
    assert climb(both, "paths=[]").ladder.sizes == 3
    assert climb(dirs, "paths=[]").ladder.sizes == 2
    options = {group.name: group.options for group in verb_groups("climb", both)}
    assert options["ladder"] == ("large", "mine", "small")


def test_axes_can_be_given_as_a_mapping_or_one_by_one(dirs: tuple[Path, ...]) -> None:
    want = {"ladder.ratio": (2.0, 4.0)}
    assert climb(dirs, "paths=[]", "axes={ladder.ratio:[2.0,4.0]}").axes == want
    nested = compose("climb", ["paths=[]", "axes.ladder.ratio=[2.0,4.0]"], dirs)
    assert nested["axes"] == {"ladder": {"ratio": [2.0, 4.0]}}
    # A mapping adds to what an overlay says, as everywhere in Hydra.
    assert climb(dirs, "plan=tall", "axes={ladder.ratio:[4.0]}").axes == {"ladder.ratio": (4.0,)}


def test_a_key_of_ones_own_is_added_by_its_path_alone() -> None:
    """Beside those the YAML has; a list of options, each null, takes no others."""
    words = ["sweep=mine", "targets.mine=1e22", "targets={16B: 2e23}"]
    targets = load("compare", compare_command.Config, words, (CONF_DIR,)).targets
    assert targets == {"16B": 2e23, "100B": 7.13e23, "1T": 6.46e24, "mine": 1e22}
    with pytest.raises(ConfigError, match=r"^targets\.mine: expected a number, got 'x'"):
        load("compare", compare_command.Config, ["sweep=mine", "targets.mine=x"], (CONF_DIR,))
    with pytest.raises(ConfigError, match=r"^override\.gate: unknown field"):
        load("launch", launch_command.Config, ["override.gate=why"], (CONF_DIR,))


def test_a_plain_value_named_like_a_group_is_set(dirs: tuple[Path, ...]) -> None:
    assert compose("look", ["ladder=anything"], dirs) == {"ladder": "anything"}


@pytest.mark.parametrize("sign", [",", ".", "'", '"', " ", "_", "~", "*", "\\"])
def test_a_sign_is_taken_as_a_shell_leaves_it(dirs: tuple[Path, ...], sign: str) -> None:
    assert climb(dirs, "plan=wide", f"name={sign}").name == sign


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("9 MB of text, read 7 times", "9 MB of text, read 7 times"),
        ("it's a test: [how far?] (C, D)", "it's a test: [how far?] (C, D)"),
        ('the "law" at 100 %', 'the "law" at 100 %'),
        ("'quoted, already'", "quoted, already"),
        (r"C:\runs, a \"path\" and \ ", r"C:\runs, a \"path\" and \ "),
        ("a last \\", "a last \\"),
        ("null", None),
    ],
)
def test_a_reason_is_taken_as_a_sentence(typed: str, meant: str | None) -> None:
    words = ["root=tunnel", f"override.extrapolation={typed}"]
    composed = compose("launch", words, (CONF_DIR,))
    assert composed["override"]["extrapolation"] == meant


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan=wide", "ladder.size=3"], "ladder.size: unknown field; did you mean ladder.sizes?"),
        (["plan=wide", "sizes=3"], "sizes: unknown field; did you mean ladder.sizes?"),
        (["plan=wide", "ladder.sizes.deep=3"], "ladder.sizes is a value, not a mapping"),
        (["plan=wide", "ladder=smal"], "ladder=smal: no such option; did you mean small? Options"),
        (["plan=wide", "ladder=3"], "ladder=3: no such option. Options: large, small"),
        (["plan=wide", "lader/x=3"], "has no group lader/x; did you mean ladder? Groups: ladder"),
        (["plan=wide", "+ladder=large"], "ladder appears more than once"),
        (["plan=wide", "ladder={deep:3}"], "ladder.deep: unknown field. Allowed: ratio, sizes"),
        ([], r"paths: missing; give it a value: paths=... \(examples: windtunnel climb --help\)"),
        (["foo"], "foo: not an override"),
        (["tall"], "tall: not an override; did you mean plan=tall?"),
        (["help"], "help: not an override; did you mean windtunnel climb --help?"),
        (["=3"], "=3: not an override"),
        (
            ["plan=wide", "axes.2d=[1.0]"],
            r"axes\.2d=\[1\.0\]: not an override; write axes='{2d: \[1",
        ),
        (["name=Size (B)"], r"quoted twice: \"name='Size \(B\)'"),
        (["name=[1,2"], r"name=\[1,2: not an override"),
        (["plan=wide", "ladder.sizes=1,2"], "one value is needed; a list is written"),
        (["plan=wide", "name=${nowhere}"], "name: Interpolation key 'nowhere' not found"),
        (["plan=wide", "hydra.run.dir=x"], "Hydra's own settings are not used"),
        (["plan=wide", "ladder.sizes=1.5"], "ladder.sizes: expected a whole number, got 1.5"),
        (["plan=wide", "~name"], "name: missing; give it a value"),
        (["plan=wide", "+extra=1"], "extra: unknown field"),
    ],
)
def test_what_is_wrong_is_named(dirs: tuple[Path, ...], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as caught:
        climb(dirs, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "${oc.env:NOT_SET_HERE}",
            r"^name: asks for the environment variable NOT_SET_HERE, which is not set; "
            r"set it \(export NOT_SET_HERE=...\), or .*: \$\{oc.env:NOT_SET_HERE,DEFAULT\}$",
        ),
        ('${oc.decode:"[a"}', "^name: cannot be resolved: missing BRACKET_CLOSE"),
    ],
)
def test_what_cannot_be_filled_in_is_named(
    dirs: tuple[Path, ...], value: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        climb(dirs, "plan=wide", f"name={value}")


def test_a_broken_yaml_is_named_with_its_line(dirs: tuple[Path, ...]) -> None:
    (dirs[0] / "ladder" / "broken.yaml").write_text("sizes: 2\nratio: [1,\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml.*line 3"):
        climb(dirs, "plan=wide", "ladder=broken")
    (dirs[0] / "ladder" / "broken.yaml").unlink()
    (dirs[0] / "plan" / "wide.yaml").write_text("# @package _global_\nladder: {typo: 3}\n")
    with pytest.raises(ConfigError, match=r"ladder\.typo: unknown field"):
        climb(dirs, "plan=wide", "paths=[]")


def test_a_mandatory_group_is_asked_for(dirs: tuple[Path, ...]) -> None:
    (dirs[0] / "climb.yaml").write_text('defaults: [_self_, {ladder: "???"}]\nname: x\n')
    with pytest.raises(ConfigError, match=r"ladder: missing; choose one.*\(large, small\)"):
        compose("climb", ["name=y"], dirs)


def test_help_lists_groups_options_and_what_each_is(dirs: tuple[Path, ...]) -> None:
    text = verb_help("climb", "Climb a ladder.\n\nExample:\n  windtunnel climb\n", dirs)
    assert "Climb a ladder." in text
    assert "small*           Two sizes." in text
    assert "wide             Wide." in text


def test_config_dirs_take_the_folders_conf_only_if_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_dirs() == (CONF_DIR,)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "nginx.yaml").write_text("worker: 1\n")
    assert config_dirs() == (CONF_DIR,)
    (tmp_path / "conf" / "sweep").mkdir()
    (tmp_path / "conf" / "sweep" / "mine.yaml").write_text("name: mine\n")
    assert config_dirs() == (tmp_path / "conf", CONF_DIR)
    other = tmp_path / "other"
    other.mkdir()
    assert config_dirs([other]) == (other, tmp_path / "conf", CONF_DIR)
    with pytest.raises(ConfigError, match="no such folder"):
        config_dirs([tmp_path / "nowhere"])


def test_in_a_checkout_the_shipped_folder_is_not_searched_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(CONF_DIR.parent)
    assert config_dirs() == (CONF_DIR,)


def test_printed_yaml_composes_to_the_same(dirs: tuple[Path, ...], tmp_path: Path) -> None:
    text = composition.composed_yaml("climb", Verb, ["plan=wide", "ladder.sizes=9"], dirs)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "climb.yaml").write_text(text)
    again = load("climb", Verb, [], (tmp_path / "again", *dirs))
    assert again == climb(dirs, "plan=wide", "ladder.sizes=9")
