"""Study files: what they may say, and what is said of those that may not."""

import math
from pathlib import Path

import pytest

from matl.simulation.campaign import jobs_of
from matl.simulation.study import EXAMPLE, ArmName, Mix, Study, parse_study, read_study
from matl_common.errors import ConfigurationError


def test_the_example_is_a_study() -> None:
    found = parse_study(EXAMPLE, name="example")
    (study,) = found.studies
    assert found.arms[0] is ArmName.ORACLE
    assert found.seeds == (0, 1, 2, 3, 4)
    assert study.is_private
    assert study.mix is Mix.DIRICHLET
    assert study.hostile_count == 1
    assert study.nodes[-1] == "hospital_e"


def test_a_grid_gives_every_combination_once() -> None:
    text = """
        seeds = [7]
        [training]
        recipe = "head"
        [hostile]
        count = 1
        [grid]
        "privacy.epsilon" = [1.0, inf]
        "hostile.attack" = ["none", "alie", "nan"]
    """
    found = parse_study(text, name="grid")
    cells = [(each.privacy.epsilon, each.hostile.attack) for each in found.studies]
    assert len(set(cells)) == len(found.studies) == 6
    assert {each.hostile_count for each in found.studies} == {0, 1}, "nobody attacks, or one"
    assert (math.inf, "nan") in cells
    assert len({each.key() for each in found.studies}) == 6
    assert [len(row) for row in found.rows] == [3, 3], "the last key varies fastest"


def test_a_row_has_all_its_seeds_before_the_next_one_begins() -> None:
    text = """
        seeds = 2
        [hostile]
        count = 1
        [grid]
        "hospitals.alpha" = [0.5, inf]
        "hostile.attack" = ["alie", "nan"]
    """
    jobs = jobs_of(parse_study(text, name="grid"))
    order = [(job.study.hospitals.alpha, job.seed, job.study.hostile.attack) for job in jobs]
    assert order[:5] == [
        (0.5, 0, "alie"),
        (0.5, 0, "nan"),
        (0.5, 1, "alie"),
        (0.5, 1, "nan"),
        (math.inf, 0, "alie"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hospitals]\nsize = 3", "hospitals.size: no such key"),
        ('[hostile]\nattack = "flip"', "attack must be none or one of"),
        ('[hostile]\ncount = 1\nshare = 0.2\nattack = "nan"', "one of hospitals, count and share"),
        ('[hostile]\nhospitals = ["hospital_z"]', "no hospital_z in this study"),
        ('[hostile]\nshare = 1.0\nattack = "nan"', "at least one hospital must be honest"),
        ("[privacy]\nepsilon = 1.0", "needs training.recipe 'head'"),
        ('[hostile]\ncount = 1\nattack = "hub"', "attack hub is on privacy noise"),
        ('[hostile]\nhospitals = ["hospital_a", "hospital_a"]', "hospitals has a name twice"),
        ("[coordinator]\nbyzantine = 3", "must be below half of 5"),
        ("[hospitals]\nby_site = true\nalpha = 0.5", "leave alpha out"),
        ('[grid]\n"privacy.epsilon" = 1.0', "must hold lists"),
        ("[grid]\nepsilon = [1.0]", "name a key of a table"),
        ("seeds = [0, 1, 0]", "counts once"),
        ('arms = ["mean", "mean"]', "counts once"),
        ('[hostile]\nattack = "alie"', "without a hospital"),
        ('[hostile]\nattack = "alie"\nshare = 0.05', "without a hospital"),
        ("[data]\nholdout_sites = [0]", "by_site"),
        ("[hospitals]\nby_site = true\n[data]\nholdout_sites = [9]", "no site 9"),
        ("seeds = 0", "seeds"),
        ('arms = ["fedavg"]', "arms.0"),
        ("[[", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match="study x") as found:
        parse_study(text, name="x")
    assert said in str(found.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.toml"):
        read_study(tmp_path / "gone.toml")


def test_hospitals_are_named_in_the_order_of_their_names() -> None:
    for count in (5, 26, 27, 1000):
        nodes = Study.model_validate({"hospitals": {"count": count}}).nodes
        assert len(set(nodes)) == count
        assert list(nodes) == sorted(nodes)
