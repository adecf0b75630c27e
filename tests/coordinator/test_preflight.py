"""What a coordinator refuses, or warns of, before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from matl_common.attestation.evidence import Technology, Verdict
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import Allowlist
from matl_common.identity.certificates import Role
from matl_common.modes import MATLMode
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import StudyPlan
from matl_common.vision.dataset import CLASSES as WORKER_CLASSES
from matl_coordinator.config import Config, load_config
from matl_coordinator.core.robust.registry import DEFAULT_RULE
from matl_coordinator.core.trust_record import DEFAULT_POLICY, initial_record
from matl_coordinator.core.weighting import Hold, aggregation_weights
from matl_coordinator.preflight import (
    CLASSES,
    check_hospitals,
    check_paths,
    noise_warnings,
    rule_warnings,
)
from matl_coordinator.protection import protection_of
from matl_coordinator.service.founding import planned
from tests.coordinator.harness import NODES, SCHEMA, Site, make_site

FIVE = {f"hospital_{letter}": 1000 for letter in "abcde"}


def written(folder: Path, extra: str) -> Path:
    """A configuration file with what every coordinator needs, and more."""
    path = folder / "coordinator.toml"
    path.write_text(
        f"""
state_dir = "state"
[federation]
id = "dr-study"
study = "dr-2026"
node_id = "coordinator"
allowlist = "allowlist.toml"
[identity]
tls_key = "k"
tls_certificate = "c"
participant_authority = "a"
signing_key = "s"
log_key = "l"
[study]
public_images = "public"
{extra}
"""
    )
    return path


def loaded(folder: Path, extra: str) -> Config:
    return load_config(written(folder, extra), environment={})


def refusal(folder: Path, extra: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(folder, extra)
    return str(caught.value)


HOLDOUT = '[holdout]\nimages = "holdout"\n'


def test_images_that_the_first_model_learns_cannot_judge_updates_too(tmp_path: Path) -> None:
    same = '[holdout]\nimages = "public"\n'
    assert loaded(tmp_path, same).study.public_steps == 0
    assert loaded(tmp_path, "public_steps = 8\n" + HOLDOUT).study.public_steps == 8
    assert "holdout set images of its own" in refusal(tmp_path, "public_steps = 8\n" + same)


ATTESTED = '[attestation]\npolicy = "attestation.toml"\nattester = '
NO_COMPLIANCE = '[log]\ncompliance = "none"\n'


@pytest.mark.attestation
def test_the_mode_follows_from_holdout_set_and_attestation(tmp_path: Path) -> None:
    peers = loaded(tmp_path, '[rounds]\nrule = "coordinate_median"\n')
    assert peers.mode is MATLMode.MODE0
    assert loaded(tmp_path, HOLDOUT).mode is MATLMode.MODE1
    assert loaded(tmp_path, f'{HOLDOUT}{ATTESTED}"sev-guest"').mode is MATLMode.MODE2
    assert "set holdout.images" in refusal(tmp_path, f'{ATTESTED}"sev-guest"')


def test_a_standby_needs_a_database_that_two_daemons_can_share(tmp_path: Path) -> None:
    standby = f'{HOLDOUT}[standby]\nname = "first"\n'
    assert "[standby] needs PostgreSQL" in refusal(tmp_path, standby)
    path = written(tmp_path, standby)
    path.write_text(f'database = "postgresql://matl@db/matl"\n{path.read_text()}')
    config = load_config(path, environment={})
    assert config.daemon == "first"
    # Which daemon leads decides about no model.
    assert config.digest == loaded(tmp_path, HOLDOUT).digest
    assert loaded(tmp_path, HOLDOUT).daemon == ""
    slow = f"{standby}poll_seconds = 4.0\n"
    assert "three times poll_seconds = 4" in refusal(tmp_path, slow)


@pytest.mark.parametrize("parameter", ["password", "sslpassword", "PassWord", "%70assword"])
def test_a_password_in_the_query_of_the_databases_url_is_refused(
    tmp_path: Path, parameter: str
) -> None:
    path = written(tmp_path, HOLDOUT)
    path.write_text(
        f'database = "postgresql://matl@db/matl?{parameter}=canary"\n{path.read_text()}'
    )
    with pytest.raises(ConfigurationError, match="behind the question mark") as refused:
        load_config(path, environment={})
    assert "canary" not in str(refused.value)
    path.write_text(path.read_text().replace(parameter, "passfile"))
    assert "canary" in load_config(path, environment={}).printable()["database"]


@pytest.mark.attestation
def test_a_simulated_attester_never_goes_with_compliance(tmp_path: Path) -> None:
    simulated = f'{HOLDOUT}{ATTESTED}"SIMULATED"\n'
    assert "SIMULATED proves nothing, and log.compliance is hipaa" in refusal(tmp_path, simulated)
    assert "is hipaa" in refusal(tmp_path, simulated + '[log]\ncompliance = "hipaa"\n')
    assert loaded(tmp_path, simulated + NO_COMPLIANCE).mode is MATLMode.MODE2
    assert "attester" in refusal(tmp_path, f'{HOLDOUT}{ATTESTED}"simulated"\n{NO_COMPLIANCE}')


@pytest.mark.attestation
def test_the_configurations_digest_is_of_what_decides_about_models(tmp_path: Path) -> None:
    config = loaded(tmp_path, HOLDOUT)
    assert loaded(tmp_path, HOLDOUT).digest == config.digest
    assert loaded(tmp_path, f"{HOLDOUT}[limits]\nidle_seconds = 7.0").digest == config.digest
    for change in ("[rounds]\nbyzantine = 0", "[trust]\nreadmit_after = 4", NO_COMPLIANCE):
        assert loaded(tmp_path, HOLDOUT + change).digest != config.digest
    assert loaded(tmp_path, f"rounds = 7\n{HOLDOUT}").digest != config.digest


@pytest.mark.attestation
def test_a_simulated_verdict_shows_in_the_claim(tmp_path: Path) -> None:
    config = loaded(tmp_path, f'{HOLDOUT}{ATTESTED}"SIMULATED"\n{NO_COMPLIANCE}')
    verdict = Verdict(Technology.SIMULATED, "ab" * 48, "x", "r", "p", simulated=True)
    claim = protection_of(config, enrolled=3, attested=verdict).claim
    assert claim.startswith("MODE2 (SIMULATED attestation, proves nothing): up to 1 of 3")
    genuine = replace(verdict, technology=Technology.SEV_SNP, simulated=False)
    claim = protection_of(config, enrolled=3, attested=genuine).claim
    assert claim.startswith("MODE2 (attested by sev-snp, measurement abababababababab…): up to 1")


def test_a_rule_and_what_goes_before_it_are_read_with_their_parameters(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        HOLDOUT
        + """
        [rounds]
        rule = "geometric_median"
        rule_parameters = { steps = 50 }
        byzantine = 2
        [[rounds.pre_aggregation]]
        name = "arc"
        [[rounds.pre_aggregation]]
        name = "nnm"
        parameters = { f = 1 }
        """,
    )
    told = config.rounds.aggregator.describe()
    assert told.startswith("arc(f=2) then nnm(f=1) then geometric_median(")
    assert "steps=50" in told


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ('[rounds]\nrule = "krumm"\n', "choose one of weighted_mean, clipped_weighted_mean"),
        ('[rounds]\nrule = "krum"\nrule_parameters = { m = 3 }\n', "it takes: f"),
        ('[rounds]\nrule = "krum"\nrule_parameters = { f = -1 }\n', "use a whole number from 0"),
        ('[[rounds.pre_aggregation]]\nname = "nnnm"\n', "choose one of clip_to_median_norm"),
        ('[[rounds.pre_aggregation]]\nname = "arc"\nparameters = { g = 1 }\n', "it takes: f"),
        ("[trust]\nharm_z = 3.0\n", "trust.harm_z"),
        ("[rounds]\ncollect_seconds = 300.0\n", "study.send_after_seconds = 300"),
        ("[trust]\nexcluded_below = 0.9\n", "trust.excluded_below"),
        ("[trust]\nfloor = 0.5\n", "trust.floor"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_with_what_is_valid(
    tmp_path: Path, extra: str, said: str
) -> None:
    assert said in refusal(tmp_path, HOLDOUT + extra)


@pytest.mark.parametrize("other", ['recipe = "full"', "epsilon = inf"])
def test_discrete_noise_is_refused_where_no_mechanism_has_it(tmp_path: Path, other: str) -> None:
    noise = 'noise = "discrete-gaussian"\n'
    assert "needs recipe 'head' and a finite epsilon" in refusal(
        tmp_path, f"{noise}{other}\n{HOLDOUT}"
    )
    assert loaded(tmp_path, noise + HOLDOUT).study.noise is Noise.DISCRETE_GAUSSIAN


def test_the_trust_section_changes_the_rule_only_where_it_is_set(tmp_path: Path) -> None:
    assert loaded(tmp_path, HOLDOUT).trust.policy == DEFAULT_POLICY
    policy = loaded(tmp_path, HOLDOUT + "[trust]\nharm_z = -4.0\n").trust.policy
    assert (policy.harm_z, policy.excluded_below) == (-4.0, DEFAULT_POLICY.excluded_below)


@pytest.mark.parametrize("rule", ["weighted_mean", "clipped_weighted_mean", "foolsgold"])
def test_without_a_holdout_set_a_rule_that_protects_from_nobody_is_refused(
    tmp_path: Path, rule: str
) -> None:
    assert "protects from nobody" in refusal(tmp_path, f'[rounds]\nrule = "{rule}"\n')
    assert loaded(tmp_path, f'{HOLDOUT}[rounds]\nrule = "{rule}"\n').rounds.rule == rule


@pytest.mark.parametrize("rule", ["fltrust", "zeno_plus_plus"])
def test_without_a_holdout_set_a_rule_that_compares_with_it_is_refused(
    tmp_path: Path, rule: str
) -> None:
    assert "set holdout.images" in refusal(tmp_path, f'[rounds]\nrule = "{rule}"\n')


def test_the_papers_score_is_refused_without_the_holdout_set_it_rests_on(tmp_path: Path) -> None:
    extra = '[rounds]\nrule = "coordinate_median"\n[trust]\ncomposite = "matl-paper"\n'
    assert "set holdout.images" in refusal(tmp_path, extra)
    assert loaded(tmp_path, HOLDOUT + extra).trust.policy.composite == "matl-paper"


def site_of(folder: Path, **settings: Any) -> Site:
    return make_site(folder, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quorum": 6}, "rounds.quorum is 6, and the allow-list enrols 5"),
        ({"minimum_participants": 6}, "rounds.minimum_participants is 6"),
        ({"byzantine": 3}, "use at most 2, less than half"),
        ({"rule": "bulyan", "quorum": 5}, "needs 7 updates, and a round has at most 5"),
        ({"rule": "krum", "quorum": 4}, "set rounds.quorum = 5"),
        ({"rule": "krum", "quorum": 5, "maximum_participants": 4, "minimum_participants": 3}, ""),
    ],
)
def test_rounds_that_no_rule_could_aggregate_are_refused_with_the_figure(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    if not said:
        with pytest.raises(ValueError, match="quorum is above maximum_participants"):
            site_of(tmp_path, sizes=FIVE, **settings)
        return
    site = site_of(tmp_path, sizes=FIVE, **settings)
    with pytest.raises(ConfigurationError, match="rounds") as caught:
        check_hospitals(site.config, site.allowlist)
    assert said in str(caught.value)


def test_a_rule_that_the_federation_can_fill_is_taken(tmp_path: Path) -> None:
    site = site_of(tmp_path, sizes=FIVE, rule="krum", quorum=5)
    check_hospitals(site.config, site.allowlist)
    assert rule_warnings(site.config, site.allowlist) == ()


def test_a_fixed_f_that_leaves_no_room_for_an_exclusion_is_warned_of(tmp_path: Path) -> None:
    site = site_of(tmp_path, sizes=FIVE, rule="krum", rule_parameters={"f": 1}, quorum=5)
    (warning,) = rule_warnings(site.config, site.allowlist)
    assert "needs 5 updates; once 1 of 5 hospitals are excluded" in warning


def test_paths_that_are_not_there_are_refused_with_their_key(tmp_path: Path) -> None:
    config = loaded(tmp_path, HOLDOUT)
    for folder in ("holdout", "public"):
        with pytest.raises(ConfigurationError, match=r"is not a folder"):
            check_paths(config)
        (tmp_path / folder).mkdir()
    with pytest.raises(ConfigurationError, match=r"study\.public_labels: there is no file"):
        check_paths(config)
    (tmp_path / "public" / "labels_deidentified.csv").write_text("")
    with pytest.raises(ConfigurationError, match=r"holdout\.labels: there is no file"):
        check_paths(config)
    (tmp_path / "holdout" / "labels_deidentified.csv").write_text("")
    check_paths(config)


def test_a_peer_coordinator_needs_no_holdout_folder(tmp_path: Path) -> None:
    config = loaded(tmp_path, '[rounds]\nrule = "coordinate_median"\n')
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "labels_deidentified.csv").write_text("")
    check_paths(config)


def test_the_claim_without_a_holdout_set_is_the_smaller_one(tmp_path: Path) -> None:
    site = site_of(tmp_path, sizes=FIVE, rule="coordinate_median", has_holdout=False)
    two = site.config.model_copy(
        update={"rounds": site.config.rounds.model_copy(update={"byzantine": 2})}
    )
    many = protection_of(two, enrolled=11)
    assert many.mode is MATLMode.MODE0
    assert many.claim.startswith("MODE0: ")
    assert "up to 2 of 11 hospitals" in many.claim
    assert "no update is scored on a holdout set" in many.claim
    assert many.warnings == ()
    few = protection_of(site.config, enrolled=5, warnings=("noise",))
    assert "up to 0 of 5" in few.claim
    assert few.warnings[0] == "noise"
    assert "rounds.byzantine is 1, and MODE0 with 5 hospitals claims nothing" in few.warnings[1]
    assert "45" not in few.claim


def test_the_claim_with_a_holdout_set_names_its_conditions(tmp_path: Path) -> None:
    protection = protection_of(site_of(tmp_path).config, enrolled=3)
    assert protection.mode is MATLMode.MODE1
    condition = "given a clean root set of at least 500 images and authenticated members"
    assert condition in protection.claim
    assert protection.rule.startswith(DEFAULT_RULE)


def test_an_attested_coordinator_is_called_so_and_never_by_simulated_evidence(
    tmp_path: Path,
) -> None:
    config = loaded(tmp_path, f'{HOLDOUT}{ATTESTED}"sev-guest"')
    for technology, name, claim in (
        (Technology.TDX, "mode2", "MODE2 (attested by tdx, measurement abab"),
        (Technology.SIMULATED, "mode2-SIMULATED", "MODE2 (SIMULATED attestation, proves nothing)"),
    ):
        is_simulated = technology is Technology.SIMULATED
        verdict = Verdict(technology, "ab" * 48, "a platform", "cd" * 32, "ef" * 32, is_simulated)
        protection = protection_of(config, enrolled=3, attested=verdict)
        assert protection.mode is MATLMode.MODE2
        assert protection.mode_name == name
        assert protection.claim.startswith(claim)


@pytest.mark.parametrize("rule", ["weighted_mean", "krum"])
@pytest.mark.parametrize(("byzantine", "claimed"), [(0, 0), (1, 1), (3, 3), (9, 9), (10, 9)])
def test_no_more_is_claimed_than_the_hospitals_that_are_configured_as_hostile(
    tmp_path: Path, rule: str, byzantine: int, claimed: int
) -> None:
    config = loaded(
        tmp_path, f'{HOLDOUT}[rounds]\nrule = "{rule}"\nbyzantine = {byzantine}\nquorum = 23\n'
    )
    protection = protection_of(config, enrolled=20)
    assert f"up to {claimed} of 20 hospitals" in protection.claim
    assert "the trust rule carries this" in protection.claim
    assert bool(protection.warnings) == (byzantine > claimed)


def test_nothing_is_claimed_for_the_score_of_the_paper(tmp_path: Path) -> None:
    config = loaded(tmp_path, HOLDOUT + '[trust]\ncomposite = "matl-paper"\n')
    claim = protection_of(config, enrolled=20).claim
    assert claim.startswith("MODE1: no claim: trust.composite matl-paper")
    assert "of 20" not in claim


FIXED = [
    ('[rounds]\nrule = "trimmed_mean"\nrule_parameters = { f = 0 }\n', "rounds.rule trimmed_mean"),
    ('[rounds]\nrule = "krum"\nrule_parameters = { f = 2 }\n', "rounds.rule krum"),
    (
        '[rounds]\npre_aggregation = [{ name = "nnm", parameters = { f = 1 } }]\n',
        "rounds.pre_aggregation nnm",
    ),
]


@pytest.mark.parametrize(("extra", "named"), FIXED)
def test_an_f_set_below_the_hostile_hospitals_is_refused_without_a_holdout_set(
    tmp_path: Path, extra: str, named: str
) -> None:
    assert f"{named} must withstand all of rounds.byzantine = 3" in refusal(
        tmp_path, f"{extra}byzantine = 3\n"
    )
    enough = extra.replace("f = 0", "f = 3").replace("f = 2", "f = 3").replace("f = 1", "f = 3")
    assert loaded(tmp_path, f"{enough}byzantine = 3\n").rounds.fixed_below_byzantine == ()


def test_an_f_set_below_the_hostile_hospitals_is_warned_of_with_a_holdout_set(
    tmp_path: Path,
) -> None:
    site = site_of(
        tmp_path,
        sizes=FIVE,
        rule="trimmed_mean",
        rule_parameters={"f": 0},
        byzantine=1,
        quorum=3,
    )
    (warning,) = rule_warnings(site.config, site.allowlist)
    assert "rounds.rule trimmed_mean is set to withstand f = 0" in warning


def test_a_quorum_in_which_the_hostile_are_no_minority_is_warned_of(tmp_path: Path) -> None:
    for quorum in (3, 4):
        site = site_of(tmp_path / str(quorum), sizes=FIVE, byzantine=2, quorum=quorum)
        (warning, *_) = rule_warnings(site.config, site.allowlist)
        assert f"rounds.quorum = {quorum} lets a round close in which 2 hostile" in warning
        assert "set rounds.quorum = 5" in warning
    site = site_of(tmp_path / "5", sizes=FIVE, byzantine=2, quorum=5)
    assert not any("quorum" in each for each in rule_warnings(site.config, site.allowlist))


@pytest.mark.parametrize(
    ("strength", "quorum", "said"),
    [
        (1.0, 1, "begins at 0.75; a round below 1.00, or of one hospital, is held"),
        (0.5, 1, "begins at 0.75; a round below 0.50, or of one hospital, is held"),
        (2.0, 2, "begins at 1.50; a round below 2.00, or of one hospital, is held"),
        (1.0, 2, ""),
        (2.0, 3, ""),
    ],
)
def test_a_quorum_whose_first_round_would_be_held_is_warned_of_as_the_rule_holds_it(
    tmp_path: Path, strength: float, quorum: int, said: str
) -> None:
    site = site_of(
        tmp_path, sizes=FIVE, byzantine=0, quorum=quorum, trust={"minimum_strength": strength}
    )
    policy = site.config.trust.policy
    warnings = [each for each in rule_warnings(site.config, site.allowlist) if "trust" in each]
    enrolled = {
        node.node_id: node.enrolled_patients
        for node in site.allowlist.nodes.values()
        if node.role is Role.PARTICIPANT
    }
    records = [initial_record(node, policy) for node in NODES]
    shared = aggregation_weights(records, enrolled, present=NODES[:quorum], f=0, policy=policy)
    is_held = isinstance(shared, Hold) and "patients" not in shared.reason
    assert is_held == bool(said) == bool(warnings)
    for each in warnings:
        assert said in each
        assert f"set rounds.quorum = {quorum + 1}" in each
        # No threshold lets a single hospital make a model.
        assert ("trust.minimum_strength" in each) == (quorum == 2)
        assert ("or trust.minimum_strength = 1.50" in each) == (quorum == 2)


def with_histogram(site: Site, *counts: int) -> Allowlist:
    nodes = dict(site.allowlist.nodes)
    nodes[NODES[0]] = replace(nodes[NODES[0]], label_histogram=counts)
    return replace(site.allowlist, nodes=nodes)


def test_the_grades_are_those_that_the_workers_know() -> None:
    assert CLASSES == WORKER_CLASSES


@pytest.mark.parametrize("counts", [(10, 20, 30, 40), (1, 2, 3, 4, 5, 6)])
def test_a_label_histogram_of_another_length_is_refused_with_the_node(
    tmp_path: Path, counts: tuple[int, ...]
) -> None:
    site = site_of(tmp_path)
    with pytest.raises(ConfigurationError, match=r"label_histogram of hospital_a .* give 5"):
        check_hospitals(site.config, with_histogram(site, *counts))


def test_a_label_histogram_of_nobody_is_warned_of_and_a_full_one_taken(tmp_path: Path) -> None:
    site = site_of(tmp_path, quorum=3)
    full, empty = with_histogram(site, 5, 4, 3, 2, 0), with_histogram(site, 0, 0, 0, 0, 0)
    check_hospitals(site.config, full)
    assert rule_warnings(site.config, full) == ()
    check_hospitals(site.config, empty)
    (warning,) = rule_warnings(site.config, empty)
    assert "label_histogram of hospital_a in the allow-list is all zeros" in warning


def plan_with(site: Site, noise_multiplier: float) -> StudyPlan:
    return planned(site.config, SCHEMA, None, noise_multiplier=noise_multiplier)


@pytest.mark.privacy
def test_noise_that_turns_a_rule_round_is_refused_or_warned_of_with_the_figure(
    tmp_path: Path,
) -> None:
    site = site_of(tmp_path, rule="coordinate_median")
    assert noise_warnings(site.config, plan_with(site, 0.0), site.allowlist) == ()
    # The median of 1000, 500 and 300 patients; one step: the ratio is z·√d / 500.
    unit = 500 / SCHEMA.update_elements**0.5
    assert noise_warnings(site.config, plan_with(site, 0.1 * unit), site.allowlist) == ()
    (warning,) = noise_warnings(site.config, plan_with(site, 0.5 * unit), site.allowlist)
    assert "0.5 times" in warning
    with pytest.raises(ConfigurationError, match="2 times as long"):
        noise_warnings(site.config, plan_with(site, 2.0 * unit), site.allowlist)


@pytest.mark.privacy
def test_a_rule_that_does_not_go_by_nearness_stands_any_noise(tmp_path: Path) -> None:
    site = site_of(tmp_path, rule="clipped_weighted_mean")
    assert noise_warnings(site.config, plan_with(site, 1e6), site.allowlist) == ()


@pytest.mark.privacy
def test_matls_rule_is_refused_under_dominating_noise_without_a_holdout_set(
    tmp_path: Path,
) -> None:
    (tmp_path / "alone").mkdir()
    alone = site_of(tmp_path / "alone", has_holdout=False)
    unit = 500 / SCHEMA.update_elements**0.5
    assert noise_warnings(alone.config, plan_with(alone, 0.9 * unit), alone.allowlist) == ()
    with pytest.raises(ConfigurationError, match=r"1\.1 times as long .* protects from nobody"):
        noise_warnings(alone.config, plan_with(alone, 1.1 * unit), alone.allowlist)
    (tmp_path / "judged").mkdir()
    judged = site_of(tmp_path / "judged")
    assert noise_warnings(judged.config, plan_with(judged, 9.0 * unit), judged.allowlist) == ()
