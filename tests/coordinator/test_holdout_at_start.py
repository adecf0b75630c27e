"""The holdout set is looked over at every start, not only when a study begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from matl_common.clock import utc_now
from matl_common.errors import ConfigurationError
from matl_common.identity.held_keys import load_p256_key
from matl_common.protocol import StudyPlan
from matl_coordinator.ports import HoldoutFacts
from matl_coordinator.service.founding import StudyMismatchError, found_or_resume
from matl_coordinator.service.register import Register
from matl_coordinator.store.models import FileModelStore
from tests.coordinator.harness import QuadraticScorer, Site, make_site


@dataclass
class Looking(QuadraticScorer):
    """A scorer whose holdout set has so many images of each class."""

    per_class: tuple[int, ...] = (100,) * 5
    looks: int = 0

    async def prepare(self) -> HoldoutFacts:
        self.looks += 1
        return HoldoutFacts(images=sum(self.per_class), skipped=0, per_class=self.per_class)


async def start(site: Site, per_class: tuple[int, ...]) -> tuple[StudyPlan, int]:
    models = FileModelStore.open(site.config.state_dir / "models")
    scorer = Looking(models, per_class=per_class)
    store = site.connect_store()
    try:
        plan = await found_or_resume(
            config=site.config,
            register=Register(store),
            models=models,
            scorer=scorer,
            signer=load_p256_key(site.config.identity.signing_key),
            clock=utc_now,
        )
    finally:
        store.close()
    return plan, scorer.looks


async def test_a_holdout_set_that_lost_a_class_is_refused_at_the_next_start(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    first, looks = await start(site, (100,) * 5)
    assert looks == 1
    with pytest.raises(ConfigurationError, match=r"fewer than 16 images of classes \[3\]"):
        await start(site, (100, 100, 100, 15, 100))
    assert await start(site, (16,) * 5) == (first, 1)


async def test_without_a_holdout_set_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    site = make_site(tmp_path, has_holdout=False)
    assert (await start(site, ()))[1] == 0
    assert (await start(site, ()))[1] == 0


async def test_another_study_is_refused_before_the_holdout_set_is_read(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    await start(site, (100,) * 5)
    study = site.config.study.model_copy(update={"rounds": 9})
    other = Site(
        site.folder, site.config.model_copy(update={"study": study}), site.allowlist, site.nodes
    )
    with pytest.raises(StudyMismatchError):
        await start(other, (0,) * 5)
