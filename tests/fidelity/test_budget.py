"""A budget: bytes go where they buy most, the file fits, and what was measured is what there is."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellmd
from cellmd.calibration.sensitivity import Group, Sensitivity, groups_of
from cellmd.calibration.spending import RoundedValues
from cellmd.calibration.streams import SourceValues, unread_tensors
from cellmd.cli.main import main
from cellmd.container import Container
from cellmd.convert.budget import Choice, Option, codings_from, parse_size, spend
from cellmd.convert.checkpoint import Checkpoint
from cellmd.convert.plan import plan_conversion
from cellmd.convert.recipe import find_recipe
from cellmd.errors import ArgumentError
from cellmd.processors.features import Prompt
from cellmd.quant import Coding
from checkpoints import make_checkpoint

F32 = Coding("f32")
WORDS = ("the old house stands by the river and nobody knows who built it " * 50).split()


@st.composite
def choice_lists(draw: st.DrawFn) -> list[Choice]:
    choices = []
    for index in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 4))
        sizes = sorted(draw(st.lists(st.integers(1, 60), min_size=n, max_size=n, unique=True)))
        divergences = draw(st.lists(st.floats(0, 10), min_size=n, max_size=n))
        options = (Option((F32,), size, value) for size, value in zip(sizes, divergences, strict=True))
        choices.append(Choice((str(index),), tuple(options)))
    return choices


@given(choice_lists(), st.integers(0, 300))
def test_a_budget_is_kept_and_every_step_saves(choices: list[Choice], extra: int) -> None:
    taken = spend(choices, extra)
    assert sum(each.n_bytes for each in taken) <= extra + sum(choice.options[0].n_bytes for choice in choices)
    assert taken == spend(choices, extra)
    for choice, option in zip(choices, taken, strict=True):
        assert option in choice.options
        assert option.divergence <= choice.options[0].divergence
    if extra == 0:
        assert taken == [choice.options[0] for choice in choices]


@given(choice_lists())
def test_money_enough_buys_the_best(choices: list[Choice]) -> None:
    best = [min(option.divergence for option in choice.options) for choice in choices]
    assert [option.divergence for option in spend(choices, 10_000)] == best


@given(choice_lists(), st.integers(0, 300))
def test_no_single_step_that_is_affordable_is_left(choices: list[Choice], extra: int) -> None:
    taken = spend(choices, extra)
    left = extra + sum(choice.options[0].n_bytes for choice in choices) - sum(each.n_bytes for each in taken)
    for choice, option in zip(choices, taken, strict=True):
        for other in choice.options:
            dearer = other.n_bytes - option.n_bytes
            assert not (0 < dearer <= left and other.divergence < option.divergence)


def test_a_dear_step_does_not_hide_a_cheap_one() -> None:
    choices = [
        Choice(("a",), (Option((F32,), 10, 1.0), Option((F32,), 20, 0.9), Option((F32,), 30, 0.0))),
        Choice(("b",), (Option((F32,), 10, 1.0), Option((F32,), 14, 0.7))),
    ]
    assert [option.n_bytes for option in spend(choices, 24)] == [30, 14]
    assert [option.n_bytes for option in spend(choices, 14)] == [20, 14]
    assert [option.n_bytes for option in spend(choices, 3)] == [10, 10]


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("2.6GB", 2_600_000_000), ("2.45 GiB", 2_630_667_468), ("900mb", 900_000_000), ("123", 123), ("1kB", 1000)],
)
def test_sizes_are_read(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@given(st.text(max_size=12).filter(lambda text: not text[:1].isdecimal() and not text[:1].isspace()))
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"as 2\.8GB"):
        parse_size(text)


def test_steps_go_from_coarse_groups_to_eight_bits() -> None:
    found = [(each.dtype, each.group_size) for each in codings_from(Coding("i4", "row", 256, "i8"))]
    assert found == [("i4", 256), ("i4", 128), ("i4", 64), ("i4", 32), ("i8", 64)]
    assert [each.group_size for each in codings_from(Coding("i4", "tile16", 32, "i8"))] == [32, 64]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("budget") / "source", dtype="float32")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(" ".join(np.random.default_rng(0).permutation(WORDS)))
    return folder


def test_a_file_takes_no_more_than_its_budget(source: Path, tmp_path: Path, texts: Path) -> None:
    smallest = cellmd.convert(source, tmp_path / "small.cellmd").file_bytes
    budget = int(smallest * 1.15)
    report = cellmd.convert(source, tmp_path / "a.cellmd", calibrate=texts, budget=budget)
    assert smallest < report.file_bytes == (tmp_path / "a.cellmd").stat().st_size <= budget
    assert report.recipe == "budget"
    assert "int8/64" in report.table()
    with Container.open(tmp_path / "a.cellmd") as container:
        assert container.provenance["recipe"] == "budget"
        recorded = container.provenance["budget"]
        assert recorded == {"bytes": budget, **report.as_dict()["budget"]}
        for tower in ("vision", "audio"):  # nothing in the material could tell
            assert next(group for group in recorded["groups"] if group["name"] == tower)["kl_alone"] is None
        gates = {
            name: packed.coding for name, packed in container.tensors.items() if name.endswith("mlp.gate_proj.weight")
        }
        assert all(container.tensors[name.replace("gate", "up")].coding == coding for name, coding in gates.items())
        assert all(
            packed.coding.dtype == "i4"
            for name, packed in container.tensors.items()
            if "tower" in name and packed.coding.quantised
        )
    cellmd.convert(source, tmp_path / "b.cellmd", calibrate=texts, budget=budget)
    assert (tmp_path / "a.cellmd").read_bytes() == (tmp_path / "b.cellmd").read_bytes()


def test_too_small_a_budget_names_the_smallest_that_will_do(source: Path, tmp_path: Path, texts: Path) -> None:
    with pytest.raises(ArgumentError, match="too small") as caught:
        cellmd.convert(source, tmp_path / "a.cellmd", calibrate=texts, budget=100_000)
    assert list(tmp_path.iterdir()) == [texts]
    named = parse_size(str(caught.value).rpartition("takes ")[2])
    assert cellmd.convert(source, tmp_path / "a.cellmd", calibrate=texts, budget=named).file_bytes <= named


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--budget", "1GB"], "add --calibrate"),
        (["--budget", "1GB", "--calibrate", "default", "--recipe", "quality"], "leave out the recipe"),
        (["--budget", "1GB", "--calibrate", "default", "--group-size", "32"], "leave out the recipe"),
        (["--budget", "much", "--calibrate", "default"], "as 2.8GB"),
    ],
)
def test_what_does_not_go_with_a_budget(
    arguments: list[str], reason: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["convert", "--input", str(source), "--output", str(tmp_path / "a.cellmd"), "--quiet"]
    assert main([*common, *arguments]) == 1
    assert reason in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="give calibration material"):
        cellmd.convert(source, tmp_path / "a.cellmd", budget=10**9)


def test_groups_cost_what_the_whole_model_says(source: Path) -> None:
    rng = np.random.default_rng(4)
    prompts = [Prompt(tuple(int(i) for i in rng.integers(3, 480, 40))) for _ in range(2)]
    with Checkpoint.open(source) as checkpoint, ThreadPoolExecutor(2) as pool:
        plan = plan_conversion(checkpoint, find_recipe("aggressive"), None)
        quantised = {each.spec.name: each.coding for each in plan if each.coding.quantised}
        values = SourceValues(checkpoint)
        measured = Sensitivity(
            values, RoundedValues(values, quantised), checkpoint.config, unread_tensors(plan), prompts, pool
        )
        groups = groups_of(checkpoint.config, quantised)
        assert sorted(name for group in groups for name in group.tensors) == sorted(quantised)
        late = [group for group in groups if group.first_layer]
        costs = measured.measure(late)
        # The same from the first layer on, where nothing is kept of the run before.
        assert costs == [
            replaced
            for group, found in zip(
                late, measured.measure([Group(g.name, g.kind, g.tensors, 0) for g in late]), strict=True
            )
            for replaced in [type(found)(group, found.divergence)]
        ]
        assert all(cost.divergence is not None and cost.divergence > 0 for cost in costs)
        nothing, everything = measured.measure([Group("none", "none", ()), Group("all", "all", tuple(quantised))])
        assert nothing.divergence == 0
        assert everything.divergence is not None
        assert everything.divergence > max(cost.divergence or 0 for cost in costs)


def test_sensitivity_of_a_file(source: Path, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, recipe in (("float", "float"), ("int4", "aggressive"), ("quality", "quality")):
        cellmd.convert(source, tmp_path / f"{name}.cellmd", recipe=recipe)
    common = ["--against", str(tmp_path / "float.cellmd"), "--text", str(texts / "a.txt"), "--sensitivity", "--quiet"]
    common += ["--backend", "reference", "--against-backend", "reference"]
    assert main(["eval", str(tmp_path / "int4.cellmd"), str(tmp_path / "quality.cellmd"), *common, "--json"]) == 0
    int4, quality = (
        {group["group"]: group for group in file["groups"]} for file in json.loads(capsys.readouterr().out)["files"]
    )
    assert int4.keys() == quality.keys()
    assert int4["down, layers 0 to 1"]["kl"] > 10 * quality["down, layers 0 to 1"]["kl"]  # 4 bits and 8
    assert int4["audio"]["kl"] is None
    assert main(["eval", str(tmp_path / "int4.cellmd"), *common]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(int4)
    assert any(line.startswith("audio") and line.endswith("unknown") for line in table)
    assert main(["eval", str(tmp_path / "float.cellmd"), *common]) == 1
    assert "nothing in it is quantised" in capsys.readouterr().err
