import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from shared.errors import Conflict, Invalid, NotFound
from shared.metrics.bootstrap import compare
from shared.training.evaluate import Plan, Space, evaluate, projected
from shared.training.figures import differences, figures, per_class, votes
from shared.training.pictures import maps
from shared.training.protocols import PROTOCOLS, Fold, Protocol, Subjects, check, protocol
from shared.training.report import write

HONEST = [name for name in PROTOCOLS if "compat" not in name]


def made(seed=0, patients=40, each=3, signal=1.5):
    """Images of patients with one class each; the vectors depend on both."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), each)
    labels = np.arange(patients)[groups] % 4
    vectors = rng.normal(size=(patients, 16))[groups] + signal * rng.normal(size=(4, 16))[labels]
    vectors = (vectors + 0.1 * rng.normal(size=(len(groups), 16))).astype(np.float32)
    split = np.array(["train", "train", "val", "test"])[(groups // 4) % 4]
    columns = {"modality": np.where(groups % 8 < 4, "MG", "US"), "view": np.full(len(groups), "")}
    subjects = Subjects(
        name="made", labels=labels, classes=("1", "2", "4", "5"), groups=groups, split=split,
        grades=np.array([1, 2, 4, 5]), columns=columns,
    )  # fmt: skip
    return subjects, vectors


class TestProtocols:
    @pytest.mark.parametrize("name", HONEST)
    def test_no_query_meets_its_own_patient(self, name):
        subjects, _ = made()
        for fold in protocol(name).folds(subjects):
            for query in fold.queries:
                visible = (
                    fold.gallery if fold.keys is None else fold.gallery[fold.keys[fold.gallery] != fold.keys[query]]
                )
                assert subjects.groups[query] not in subjects.groups[visible]

    def test_the_patient_protocol_has_five_different_arrangements(self):
        subjects, _ = made()
        folds = protocol("patient").folds(subjects)
        assert len(folds) == 5
        assert len({tuple(fold.queries) for fold in folds}) == 5
        for fold in folds:
            assert sorted([*fold.queries, *fold.gallery]) == list(range(len(subjects)))
            shares = np.bincount(subjects.labels[fold.queries]) / len(fold.queries)
            assert shares == pytest.approx(np.full(4, 0.25), abs=0.08)

    def test_the_same_seed_arranges_the_same(self):
        subjects, _ = made()
        first, second = (protocol("patient").folds(subjects, (3,))[0] for _ in range(2))
        assert np.array_equal(first.queries, second.queries)

    def test_the_published_split_has_the_papers_counts(self):
        labels = np.repeat(np.arange(6), (801, 333, 187, 319, 358, 8))  # BI-RADS 1 to 6 of CDD-CESM
        subjects = Subjects(name="x", labels=labels, classes=tuple("123456"), groups=np.arange(2006))
        (fold,) = protocol("paper2-v1-compat").folds(subjects)
        assert [len(rows) for rows in (fold.train, fold.gallery, fold.queries)] == [1123, 281, 602]
        assert sorted([*fold.train, *fold.gallery, *fold.queries]) == list(range(2006))
        assert np.bincount(labels[fold.queries]).tolist() == [240, 100, 56, 96, 108, 2]  # scikit-learn's, seed 42
        assert np.array_equal(fold.gallery, fold.selects)

    def test_a_class_of_one_image_does_not_stop_the_published_split_but_too_few_images_do(self):
        labels = np.array([0] * 20 + [1])
        subjects = Subjects(name="x", labels=labels, classes=("a", "b"), groups=np.arange(21))
        (fold,) = protocol("paper2-v1-compat").folds(subjects)
        assert len(fold.queries) == 7
        with pytest.raises(Invalid, match="needs more images"):
            protocol("paper2-v1-compat").folds(
                Subjects(name="x", labels=np.zeros(1, int), classes=("a",), groups=np.zeros(1, int))
            )

    @pytest.mark.parametrize("name", ["patient", "lopo", "split", "paper1-compat-without-self"])
    def test_any_protocol_asks_with_one_kind_and_searches_another(self, name):
        subjects, _ = made()
        kinds = subjects.columns["modality"]
        whole, between = protocol(name).folds(subjects)[0], protocol(f"{name}:US:MG").folds(subjects)[0]
        assert (set(kinds[between.queries]), set(kinds[between.gallery])) == ({"US"}, {"MG"})
        assert np.array_equal(between.queries, whole.queries[kinds[whole.queries] == "US"])
        assert np.array_equal(between.gallery, whole.gallery[kinds[whole.gallery] == "MG"])

    def test_a_kind_is_the_end_of_a_source_and_an_unknown_one_has_no_queries(self):
        subjects, _ = made()
        sources = np.where(np.arange(len(subjects)) % 3, "cdd-cesm/DM_low_energy", "cdd-cesm/CESM_subtracted")
        subjects = replace(subjects, columns={"source": sources})
        (fold,) = protocol("lopo:DM_low_energy:CESM_subtracted").folds(subjects)
        assert np.array_equal(fold.gallery, np.flatnonzero(np.arange(len(subjects)) % 3 == 0))
        with pytest.raises(Invalid, match="no queries"):
            protocol("lopo:XA:CESM_subtracted").folds(subjects)
        with pytest.raises(NotFound, match="QUERIES"):
            protocol("lopo:XA")

    def test_the_gallery_of_a_given_split_is_more_than_what_selects_models(self):
        subjects, _ = made()
        (fold,) = protocol("split").folds(subjects)
        assert set(subjects.split[fold.gallery]) == {"train", "val"}
        assert set(subjects.split[fold.train]) == {"train"}

    @pytest.mark.parametrize("name", [name for name in PROTOCOLS if name not in {*HONEST, "paper2-v1-compat"}])
    def test_a_leak_is_an_error_unless_the_name_says_so(self, name):
        subjects, _ = made()
        assert protocol(name).folds(subjects)
        with pytest.raises(Invalid, match="leak: 120 of 120 queries"):
            Protocol("mine", PROTOCOLS[name]).folds(subjects)

    def test_some_queries_of_a_split_by_image_leak_too(self):
        subjects, _ = made()
        with pytest.raises(Invalid, match="have their own patient in the gallery"):
            Protocol("by image", PROTOCOLS["paper2-v1-compat"]).folds(subjects)

    def test_a_gallery_that_selects_models_is_an_error(self):
        groups = np.arange(4)
        rows = np.arange(2)
        check(Fold(seed=0, queries=np.array([3]), gallery=rows, selects=rows[:1]), groups)
        with pytest.raises(Invalid, match="selects models"):
            check(Fold(seed=0, queries=np.array([3]), gallery=rows, selects=rows), groups)

    def test_fitting_on_patients_of_the_queries_is_an_error(self):
        fold = Fold(seed=0, queries=np.array([0]), gallery=np.array([1]), train=np.array([2]))
        check(fold, np.array([0, 1, 2]))
        with pytest.raises(Invalid, match="used for fitting"):
            check(fold, np.array([0, 1, 0]))

    def test_what_there_is_not_is_told(self):
        subjects, _ = made()
        with pytest.raises(NotFound, match="paper1-compat"):
            protocol("loocv")
        with pytest.raises(Invalid, match="no split"):
            protocol("split").folds(
                Subjects(name="x", labels=subjects.labels, classes=subjects.classes, groups=subjects.groups)
            )
        with pytest.raises(Invalid, match="at least 3 patients"):
            protocol("patient").folds(
                Subjects(name="x", labels=np.zeros(4, int), classes=("a",), groups=np.array([0, 0, 1, 1]))
            )
        with pytest.raises(Invalid, match="a class of at least 3 images"):
            protocol("patient").folds(
                Subjects(name="x", labels=np.array([0, 0, 1, 1]), classes=("a", "b"), groups=np.arange(4))
            )

    def test_rows_that_do_not_belong_together_are_refused(self):
        with pytest.raises(Invalid):
            Subjects(name="x", labels=np.zeros(3, int), classes=("a",), groups=np.zeros(2, int))
        with pytest.raises(Invalid):
            Subjects(name="x", labels=np.array([1]), classes=("a",), groups=np.zeros(1, int))


class TestDifferences:
    def test_they_are_the_paired_comparisons_adjusted_for_their_number(self):
        subjects, vectors = made()
        rng = np.random.default_rng(1)
        worse = (vectors + 3 * rng.normal(size=vectors.shape)).astype(np.float32)
        plan = Plan(protocols=("patient", "lopo"), ks=(1, 10), seeds=(0, 1), resamples=1000)
        first, second = (evaluate(subjects, {"cosine": Space("cosine", one)}, plan) for one in (vectors, worse))
        found = differences(first, second)
        assert len(found) == 2 * 3 * 2
        runs = [report.runs[1].found for report in (first, second)]
        wanted = compare(*(run.values["mAP"] for run in runs), runs[0].clusters, labels=runs[0].labels, resamples=1000)
        (one,) = [d for d in found if (d.protocol, d.name, d.mean) == ("lopo", "mAP", "macro")]
        assert (one.difference, one.effect) == (wanted.difference, wanted.effect)
        assert wanted.p < one.p < 0.05
        assert all(d.difference.mean == 0 and d.p == 1 for d in differences(first, first))

    def test_other_images_or_no_common_distance_are_refused(self):
        subjects, vectors = made()
        plan = Plan(protocols=("lopo",), ks=(1, 10), resamples=1000)
        one = evaluate(subjects, {"cosine": Space("cosine", vectors)}, plan)
        with pytest.raises(Invalid, match="no distance"):
            differences(one, evaluate(subjects, {"l2": Space("l2", vectors)}, plan))
        fewer = evaluate(replace(subjects, groups=subjects.groups[::-1]), {"cosine": Space("cosine", vectors)}, plan)
        with pytest.raises(Invalid, match="different images"):
            differences(one, fewer)


class TestEvaluate:
    def test_protocols_that_leak_score_higher_on_vectors_that_know_the_patient(self):
        subjects, vectors = made(signal=0.0, each=8)
        plan = Plan(protocols=tuple(PROTOCOLS), ks=(1, 2), seeds=(0,))
        found = {
            run.protocol: run.found.micro("P@1")
            for run in evaluate(subjects, {"cosine": Space("cosine", vectors)}, plan).runs
        }
        assert found["paper1-compat"] == found["paper1-compat-without-self"] == 1.0
        assert found["paper2-v1-compat"] > 0.5
        assert max(found[name] for name in HONEST) < 0.5

    def test_codes_and_embeddings_are_measured_side_by_side(self):
        subjects, vectors = made()
        codes = np.packbits(vectors >= 0, axis=1)
        spaces = {"a": Space("cosine", vectors), "b": Space("l2", vectors), "c": Space("hamming", codes)}
        report = evaluate(subjects, spaces, Plan(seeds=(0, 1), ks=(1, 10)))
        assert [run.space for run in report.runs] == ["a", "b", "c"]
        hamming = report.runs[2]
        assert hamming.codes["bits"] == 16
        assert 1 < hamming.codes["unique codes"] <= hamming.gallery[1]
        assert {"P@H<=2", "R@H<=0", "R@H<=4", "empty@H<=2"} <= hamming.found.values.keys()
        assert hamming.found.micro("R@H<=4") >= hamming.found.micro("R@H<=0")

    def test_votes_of_codes_do_not_depend_on_the_order_of_storage(self):
        subjects, vectors = made()
        codes = np.packbits(vectors[:, :8] > 0, axis=1)
        found = []
        for order in (np.arange(len(subjects)), np.argsort(subjects.labels), np.argsort(-subjects.labels)):
            stored = Subjects(
                name="made", labels=subjects.labels[order], classes=subjects.classes, groups=subjects.groups[order]
            )
            (run,) = evaluate(stored, {"codes": Space("hamming", codes[order])}, Plan(protocols=("lopo",))).runs
            found.append({k: dict(zip(order[run.rows], voted, strict=True)) for k, voted in run.votes.items()})
        assert found[0] == found[1] == found[2]

    def test_components_are_those_of_the_training_part_alone(self):
        subjects, vectors = made()
        (fold,) = protocol("split").folds(subjects)
        reduced = projected(vectors, fold.train, 5)
        disturbed = vectors.copy()
        disturbed[fold.queries] *= 100
        again = projected(disturbed, fold.train, 5)
        assert np.allclose(reduced[fold.gallery], again[fold.gallery])
        own = reduced[fold.train] - reduced[fold.train].mean(axis=0)
        assert np.allclose(own.T @ own, np.diag(np.diag(own.T @ own)), atol=1e-2)
        with pytest.raises(Invalid, match="in fewer than 5 directions"):  # rounding noise is no component
            projected(np.outer(np.arange(len(vectors)), vectors[0]).astype(np.float32), fold.train, 5)
        with pytest.raises(Invalid, match="components must be fewer"):
            projected(vectors, fold.train[:5], 5)
        with pytest.raises(Invalid, match="no training part"):
            evaluate(subjects, {"cosine": Space("cosine", vectors)}, Plan(protocols=("lopo",), components=5))

    def test_vectors_of_other_images_are_refused(self):
        subjects, vectors = made()
        with pytest.raises(Invalid):
            evaluate(subjects, {"cosine": Space("cosine", vectors[:-1])})


@pytest.fixture(scope="module")
def report():
    subjects, vectors = made()
    plan = Plan(protocols=("patient", "lopo"), ks=(1, 10, 100), seeds=(0, 1), resamples=1000)
    return evaluate(subjects, {"cosine": Space("cosine", vectors)}, plan, {"model": "made up"})


class TestReport:
    def test_each_figure_stands_beside_what_knows_nothing(self, report):
        rows = {(r.protocol, r.part, r.name): r for r in figures(report)}
        row = rows["patient", "all", "P@10"]
        assert row.micro.low < row.micro.mean < row.micro.high
        assert 0.15 < row.random_micro < 0.35
        assert row.lift_micro == pytest.approx(row.micro.mean / row.random_micro)
        assert row.majority_macro == pytest.approx(0.25, abs=0.05)
        assert row.seeds == 2
        assert row.sd_micro > 0
        assert (row.queries, row.patients) == (len(report.runs[0].rows), len(np.unique(report.runs[0].found.clusters)))
        assert rows["patient", "all", "P@100"].short == row.queries
        assert np.isnan(rows["lopo", "all", "P@10"].sd_micro)

    def test_parts_are_the_queries_of_each_modality_and_a_column_of_one_value_has_none(self, report):
        rows = [r for r in figures(report) if r.name == "mAP" and r.protocol == "lopo"]
        assert [r.part for r in rows] == ["all", "modality=MG", "modality=US"]
        whole, *parts = rows
        assert sum(r.queries for r in parts) == whole.queries
        assert sum(r.queries * r.micro.mean for r in parts) == pytest.approx(whole.queries * whole.micro.mean)

    def test_votes_have_the_ordinal_figures_too(self, report):
        row = next(v for v in votes(report) if (v.protocol, v.k) == ("lopo", 10))
        assert row.knows_nothing == 0.25
        assert row.balanced_accuracy.mean > 0.5
        assert row.quadratic_kappa > 0.3
        assert row.balanced_accuracy_456 > 0.5

    def test_classes_average_to_the_macro_figure(self, report):
        rows = [r for r in per_class(report) if r["protocol"] == "lopo"]
        assert np.mean([r["P@10"] for r in rows]) == pytest.approx(report.runs[1].found.macro("P@10"))

    def test_it_is_written_once_as_text_tables_and_pictures(self, report, tmp_path):
        _, vectors = made()
        write(report, tmp_path / "out", vectors)
        text = (tmp_path / "out" / "report.md").read_text()
        assert "## patient, cosine" in text
        one_table = text.split("## All protocols")[1].split("##")[0]
        assert "| lopo | cosine | mAP |" in one_table
        assert "| patient | cosine | P@10 |" in one_table
        assert "LEAKS" not in text
        assert "model: made up" in text
        for name in ("precision_at_k.png", "pca.png", "tsne.png"):
            assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
            assert name in text
        facts = json.loads((tmp_path / "out" / "report.json").read_text())
        with (tmp_path / "out" / "figures.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(facts["figures"]) == len(figures(report))
        assert float(rows[0]["micro_low"]) <= float(rows[0]["micro"])
        with pytest.raises(Conflict):
            write(report, tmp_path / "out")

    @pytest.mark.parametrize("images", [1, 4])
    def test_images_that_are_all_alike_have_no_map(self, images, tmp_path):
        subjects = Subjects(name="x", labels=np.zeros(images, int), classes=("a",), groups=np.arange(images))
        assert maps(subjects, np.ones((images, 8), np.float32), tmp_path) == {}

    def test_a_class_between_dollars_is_no_formula(self, tmp_path):
        subjects = Subjects(name="x", labels=np.zeros(4, int), classes=("benign$mass_$normal",), groups=np.arange(4))
        assert set(maps(subjects, np.eye(4, dtype=np.float32), tmp_path)) == {"pca", "tsne"}

    def test_a_command_that_names_a_folder_in_no_encoding_is_reported(self, report, tmp_path):
        write(replace(report, about={"command": "similis evaluate \udcff"}), tmp_path / "out")
        assert b"similis evaluate \xff" in (tmp_path / "out" / "report.md").read_bytes()

    def test_a_run_that_leaks_says_so_in_its_heading(self, tmp_path):
        subjects, vectors = made()
        plan = Plan(protocols=("paper1-compat",), ks=(1,), resamples=1000)
        write(evaluate(subjects, {"cosine": Space("cosine", vectors)}, plan), tmp_path / "out")
        assert "## paper1-compat, cosine (LEAKS" in (tmp_path / "out" / "report.md").read_text()
