"""Stored opinions: what columns hold is told by their names alone, rows are joined by id or texts, the rest refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from core.artefacts.building import Artefact
from core.labels import WITHOUT_TIES
from core.provenance import Learned
from core.records import LABELS, ORDERS, TEST, Conversation
from core.store.reading import read_logits
from core.store.seen import learned_by_judges
from core.store.targets import soft_targets
from teachers.bradley_terry import cross_fit
from teachers.config import StoredConfig
from teachers.stored.columns import columns_of, meaning
from teachers.stored.opinions import rewards, source_of, write_stored

COUNT = 12
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(COUNT, 3)) * 2
P = softmax(LOGITS, axis=1)


def conversations(count: int = COUNT, texts: Sequence[str] = ("x", "y")) -> list[Conversation]:
    return [
        Conversation(
            f"c{i}",
            [f"question {i}"],
            [f"{texts[0]} {i}", "more"],
            [f"{texts[1]} {i}"],
            votes=[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]][i % 3],
            fold=TEST if i == 0 else i % 3,
        )
        for i in range(count)
    ]


ROWS = conversations()
Write = Callable[..., pl.DataFrame]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a table of opinions to a file and from there into a store, whose rows it gives."""
    stores = iter(range(100))

    def run(
        table: dict[str, Any] | None, rows: Sequence[Conversation] = ROWS, labels: Any = LABELS, **told: Any
    ) -> Any:
        place = tmp_path / str(next(stores))
        file = None
        if table is not None:
            file = str(tmp_path / f"{place.name}.parquet")
            pl.DataFrame(table, strict=False).write_parquet(file)
        learned_from, log_odds = told.get("learned_from", "none"), told.get("log_odds", False)
        source, identity = source_of(StoredConfig(file, learned_from), log_odds)
        artefact = Artefact(place, "teacher", identity, [], tmp_path)
        write_stored(artefact, source, rows, labels, learned_from, 1.0, log_odds)
        return place if told.get("folder") else read_logits(place, "").sort("id", "order")

    return run


def columns(prefix: str, values: np.ndarray, suffix: str = "") -> dict[str, list[float]]:
    return {f"{prefix}_{label}{suffix}": values[:, i].tolist() for i, label in enumerate(LABELS)}


IDS = {"id": [c.id for c in ROWS]}


def of_rows(store: pl.DataFrame, order: str = "ab", rows: Sequence[Conversation] = ROWS) -> np.ndarray:
    """The store's probabilities of one order, in the order of `rows`."""
    found = dict(store.filter(order=order).select("id", "logits").iter_rows())
    return softmax(np.array([found[c.id] for c in rows], dtype=float), axis=1)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("p_a", ("probabilities", "a", None)),
        ("winner_model_b", ("probabilities", "b", None)),
        ("winner_tie", ("probabilities", "tie", None)),
        ("Probability that A wins", ("probabilities", "a", None)),
        ("LogProbB", ("log-probabilities", "b", None)),
        ("log_p_draw_ba", ("log-probabilities", "tie", "ba")),
        ("logit_a_ab", ("logits", "a", "ab")),
        ("score_b", ("scores", "b", None)),
        ("model_a", None),
        ("winner", None),
        ("tie", None),
        ("p_value_a", None),
    ],
)
def test_a_column_s_name_tells_what_it_holds(name: str, found: Any) -> None:
    assert meaning(name) == found


def test_columns_stand_in_any_order_and_the_name_decides() -> None:
    names = ["p_tie", "id", "p_b", "p_a"]
    found = columns_of(names, "file")
    assert found is not None and found.of == {None: ["p_a", "p_b", "p_tie"]}
    both = columns_of([f"logit_{label}_{order}" for label in reversed(LABELS) for order in ORDERS], "file")
    assert both is not None and both.of["ba"] == ["logit_a_ba", "logit_b_ba", "logit_tie_ba"]


@pytest.mark.parametrize(
    "table",
    [
        columns("logit", LOGITS + 5),
        columns("p", P),
        columns("winner_model", P) | {"winner_tie": P[:, 2].tolist()},
        dict(reversed(columns("logprob", np.log(P)).items())),
        columns("log_p", np.log(P * 0.9)),
    ],
    ids=["logits", "probabilities", "kaggle", "log-probabilities", "log-probabilities-of-a-part"],
)
def test_every_quantity_gives_the_same_opinion(write: Write, table: dict[str, Any]) -> None:
    table = {name: values for name, values in table.items() if name != "winner_model_tie"}
    store = write(IDS | table)
    for order in ORDERS:
        assert np.abs(of_rows(store, order) - P).max() < 1e-5
    if "log_p_a" in table:  # what the labels leave is kept
        assert np.abs(store["outside"].to_numpy() - 0.1).max() < 1e-5


def test_rows_are_joined_by_id_or_by_texts_whichever_side_is_a(write: Write) -> None:
    """A file that has the responses the other way round means the other one by a."""
    shuffled = [*range(COUNT)][::-1]
    turned = [c.swap() if i % 2 else c for i, c in enumerate(ROWS)]
    p = np.array([row[[1, 0, 2]] if i % 2 else row for i, row in enumerate(P)])
    texts = {n: [json.dumps(getattr(turned[i], n)) for i in shuffled] for n in ("prompt", "response_a", "response_b")}
    by_texts = write(texts | columns("p", p[shuffled]))
    by_id = write({"id": [ROWS[i].id for i in shuffled]} | columns("p", P[shuffled]))
    assert np.abs(of_rows(by_texts) - P).max() < 1e-5
    assert np.abs(by_texts["logits"].to_numpy() - by_id["logits"].to_numpy()).max() < 1e-6
    assert by_texts.drop("logits", "outside").equals(by_id.drop("logits", "outside"))


def test_texts_beside_an_id_tell_which_response_is_a(write: Write) -> None:
    turned = [c.swap() if i % 2 else c for i, c in enumerate(ROWS)]
    p = np.array([row[[1, 0, 2]] if i % 2 else row for i, row in enumerate(P)])
    texts = {n: [json.dumps(getattr(c, n)) for c in turned] for n in ("prompt", "response_a", "response_b")}
    assert np.abs(of_rows(write(IDS | texts | columns("p", p))) - P).max() < 1e-5
    unread = texts | {"response_a": [None] * COUNT}
    assert np.abs(of_rows(write(IDS | unread | columns("p", P))) - P).max() < 1e-5  # the id alone decides


def test_an_id_with_other_responses_is_refused(write: Write) -> None:
    """Of a file that has the same ids by chance, or shortened texts: which side is a cannot be told."""
    texts = {n: [json.dumps(getattr(c, n)) for c in ROWS] for n in ("prompt", "response_a", "response_b")}
    texts["response_b"][2] = json.dumps(["y"])
    with pytest.raises(ValueError, match=r"row 3: c2 has other responses in the data, .*leave out response_a, resp"):
        write(IDS | texts | columns("p", P))


def test_both_orders_stay_apart_in_columns_and_in_rows(write: Write) -> None:
    other = softmax(LOGITS[:, ::-1], axis=1)
    wide = write(IDS | columns("p", P, "_ab") | columns("p", other, "_ba"))
    order = [o for o in ORDERS for _ in ROWS]
    long = write({"id": IDS["id"] * 2, "order": order} | columns("p", np.concatenate([P, other])))
    for store in (wide, long):
        assert np.abs(of_rows(store, "ab") - P).max() < 1e-5 and np.abs(of_rows(store, "ba") - other).max() < 1e-5
    one = write(IDS | {"order": ["ab"] * COUNT} | columns("p", P))
    assert np.abs(of_rows(one, "ba") - P).max() < 1e-5  # it stands for both
    turned = [c.swap() if i % 2 else c for i, c in enumerate(ROWS)]
    texts = {n: [json.dumps(getattr(c, n)) for c in turned] for n in ("prompt", "response_a", "response_b")}
    p = np.array([row[[1, 0, 2]] if i % 2 else row for i, row in enumerate(P)])
    one = write(texts | {"order": ["ab"] * COUNT} | columns("p", p))  # of the data's own a and b, some are order ba
    assert np.abs(of_rows(one, "ab") - P).max() < 1e-5 and np.abs(of_rows(one, "ba") - P).max() < 1e-5


def test_rows_of_other_conversations_are_left_aside(write: Write) -> None:
    store = write({"id": [*IDS["id"], "other"]} | columns("p", np.concatenate([P, P[:1]])))
    assert sorted(store["id"].unique()) == sorted(IDS["id"])


def broken(**changes: Any) -> dict[str, Any]:
    return IDS | columns("p", P) | changes


def p_a(row: int, value: float) -> dict[str, Any]:
    return broken(p_a=[value if i == row else x for i, x in enumerate(P[:, 0].tolist())])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (broken(id=["c1", *IDS["id"][1:]]), r"row 2: c1 is in row 1 already; leave one out"),
        ({n: v[:-2] for n, v in broken().items()}, r"no opinion of 2 of 12 conversations, such as \['c10', 'c11'\]"),
        (broken(id=[f"z{i}" for i in range(COUNT)]), r"no opinion of 12 of 12.*it has \['z0', 'z1', 'z2'\]"),
        (p_a(3, float("nan")), r"row 4: p_a is no finite number: nan"),
        (broken(p_a=[*["0.2"] * 4, "n/a", *["0.2"] * 7]), r"row 5: p_a is no finite number: 'n/a'"),
        (p_a(3, 0.9999), r"row 4: c3 has probabilities .*, whose probabilities sum to 1\.\d+: one is expected"),
        (p_a(3, -0.1), r"row 4: c3 has probabilities .* one of which is negative"),
        (IDS | columns("p", P * 100), r"sum to 100.*in percent\?"),
        (IDS | columns("logprob", np.log(P * 1.5)), r"log-probabilities .*sum to 1\.5"),
        (IDS | columns("logit", np.where(P > 0.5, 1.0, -np.inf)), r"logits .* not finite"),
        (IDS | {"logits": LOGITS.tolist()}, r"logits does not say which of its numbers is of which label: name three"),
        (IDS | {"a": P[:, 0], "b": P[:, 1], "tie": P[:, 2]}, r"no columns of opinions, only \['id', 'a',"),
        (IDS | {"p_a": P[:, 0], "p_tie": P[:, 2]}, r"no column holds the probabilities of b"),
        (broken(prob_a=P[:, 0]), r"columns p_a and prob_a both hold the probabilities of a: drop one"),
        (IDS | columns("p", P, "_ab"), r"not those of one order or of both alike"),
        (IDS | {"p_a": P[:, 0], "p_b": 1 - P[:, 0]}, r"comes from data without ties"),
        ({"id": [*IDS["id"], "c0"], "order": [*["ab"] * COUNT, "ba"]} | columns("p", P[[*range(COUNT), 0]]),
         r"c1 is judged in one order alone, others in both"),
        (broken(order=["AB"] * COUNT), r"row 1: order is 'AB': write ab or ba"),
        ({"name": IDS["id"]} | columns("p", P), r"neither id nor prompt"),
        (broken(id=[None, *IDS["id"][1:]]), r"row 1: id is missing"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_a_sentence(write: Write, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        write(table)
    assert "\n" not in str(refused.value)


def test_sums_that_are_almost_one_are_renormalised_and_told(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        store = write(p_a(3, P[3, 0] + 5e-4))
    assert "2 of 24 rows do not sum to one" in caplog.text and "renormalised" in caplog.text
    expected = P[3] + [5e-4, 0, 0]
    assert np.abs(of_rows(store)[3] - expected / expected.sum()).max() < 1e-6


def test_an_unread_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher\.stored\.file=nowhere\.csv: no such file"):
        source_of(StoredConfig("nowhere.csv", "none"), False)


def test_data_without_ties_take_two_columns(write: Write) -> None:
    rows = [replace(c, votes=[1.0, 0.0, 0.0]) for c in ROWS]
    p = P[:, :2] / P[:, :2].sum(1, keepdims=True)
    found = write(IDS | {"p_b": p[:, 1], "p_a": p[:, 0]}, rows, WITHOUT_TIES)["logits"].to_numpy().astype(float)
    assert np.abs(softmax(found[::2, :2], axis=1) - p[np.argsort(IDS["id"])]).max() < 1e-6


SCORES = RNG.normal(size=(COUNT, 2)).tolist()


def test_scores_of_responses_are_mapped_as_rewards_are(write: Write) -> None:
    """By id, by texts with a row for each response, and from the data themselves: the fit on other folds' votes."""
    pairs = [(a, b) for a, b in SCORES]
    expected = cross_fit(rewards(pairs, ROWS), ROWS, 1.0)
    by_id = write(IDS | {"score_a": [a for a, _ in pairs], "score_b": [b for _, b in pairs]})
    responses = [
        (json.dumps(c.prompt), json.dumps(side), score)
        for c, both in zip(ROWS, pairs, strict=True)
        for side, score in zip((c.response_a, c.response_b), both, strict=True)
    ]
    prompt, response, score = (list(column) for column in zip(*responses, strict=True))
    by_texts = write({"prompt": prompt, "response": response, "gpt_logit": score})
    in_data = write(None, [replace(c, score_a=a, score_b=b) for c, (a, b) in zip(ROWS, pairs, strict=True)])
    for store in (by_id, by_texts, in_data):
        ab = store.filter(order="ab").select("id", "logits", "judge_fold")
        assert ab.sort("id").equals(expected.sort("id").select(ab.columns))
        assert not store["in_sample"].any()
    with pytest.raises(ValueError, match=r"4 of 12 conversations of the data have no scores, such as \['c0', 'c3'"):
        write(None, [replace(c, score_a=1.0, score_b=None if i % 3 == 0 else 2.0) for i, c in enumerate(ROWS)])
    with pytest.raises(ValueError, match=r"learned_from=fold: scores are fitted on the votes of other folds"):
        write(IDS | {"score_a": [1.0] * COUNT, "score_b": [0.5] * COUNT, "fold": [0] * COUNT}, learned_from="fold")


def test_differences_of_log_odds_are_the_logits_of_data_without_ties(write: Write) -> None:
    """A fit would find no scale: where the scores themselves cast the votes, the largest fits best."""
    rows = [
        replace(c, votes=[1.0, 0.0, 0.0] if a > b else [0.0, 1.0, 0.0]) for c, (a, b) in zip(ROWS, SCORES, strict=True)
    ]
    table: dict[str, list[Any]] = {"prompt": [], "response": [], "gpt_logit": []}
    for c, both in zip(rows, SCORES, strict=True):
        table["prompt"] += [json.dumps(c.prompt)] * 2
        table["response"] += [json.dumps(c.response_a), json.dumps(c.response_b)]
        table["gpt_logit"] += both
    p_a = 1 / (1 + np.exp([b - a for a, b in SCORES]))
    for order in ORDERS:
        found = of_rows(write(table, rows, WITHOUT_TIES), order, rows)
        assert np.abs(found - np.column_stack([p_a, 1 - p_a, np.zeros(COUNT)])).max() < 1e-6
    with pytest.raises(ValueError, match=r"learned_from=fold: .* holds single responses, which are in no fold"):
        write(table | {"fold": [0] * len(table["prompt"])}, rows, WITHOUT_TIES, learned_from="fold")
    in_data = [replace(c, score_a=a, score_b=b) for c, (a, b) in zip(rows, SCORES, strict=True)]
    assert write(None, in_data, WITHOUT_TIES, log_odds=True).equals(write(table, rows, WITHOUT_TIES)), "from the data"
    assert not write(None, in_data, WITHOUT_TIES).equals(write(table, rows, WITHOUT_TIES)), "other scores are fitted"
    with pytest.raises(ValueError, match=r"learned_from=fold: the scores in the data are of single responses"):
        write(None, in_data, WITHOUT_TIES, learned_from="fold", log_odds=True)
    table["gpt_score"] = table.pop("gpt_logit")
    assert np.abs(of_rows(write(table, rows, WITHOUT_TIES), "ab", rows)[:, 0] - p_a).max() > 0.01
    table["gpt_logit"] = table.pop("gpt_score")
    for place, told in enumerate((r"\[-inf, ", r"\[.*, -inf\]")):
        broken = [float("-inf") if i == place else logit for i, logit in enumerate(table["gpt_logit"])]
        with pytest.raises(ValueError, match=rf"row {place + 1}: c0 has logits {told}"):
            write(table | {"gpt_logit": broken}, rows, WITHOUT_TIES)


class TestProvenance:
    """What the opinions learned from is declared, and goes on to whoever learns from them."""

    def test_none_and_unknown(self, write: Write) -> None:
        clean = write(IDS | columns("p", P), folder=True)
        assert soft_targets(clean, ROWS, 0, "out_of_fold", None).learned == Learned()
        unknown = write(IDS | columns("p", P), folder=True, learned_from="unknown")
        student = Learned.of(ROWS[:2]) | soft_targets(unknown, ROWS, 0, "out_of_fold", None).learned
        assert not student.is_known and not student.taught().is_known and Learned.of(ROWS).is_known
        scores = IDS | {"score_a": [a for a, _ in SCORES], "score_b": [b for _, b in SCORES]}
        fitted = write(scores, folder=True, learned_from="unknown")
        assert not soft_targets(fitted, ROWS, 0, "out_of_fold", None).learned.is_known

    def test_a_column_of_folds(self, write: Write) -> None:
        """The judge of a row learned from the rows of all other folds; one without a fold from all that have one."""
        folds = [None if c.fold == TEST else c.fold for c in ROWS]
        store = write(IDS | columns("p", P) | {"cv": folds}, learned_from="cv", folder=True)
        logits = read_logits(store, "")
        assert not logits["in_sample"].any()
        for fold in (0, 1, 2):
            assert learned_by_judges(store, [fold]) == Learned.of(c for c in ROWS if c.fold not in (fold, TEST))
        assert learned_by_judges(store, [-1]) == Learned.of(c for c in ROWS if c.fold != TEST)
        with pytest.raises(ValueError, match=r"learned_from=flod: .* has no such column"):
            write(IDS | columns("p", P) | {"cv": folds}, learned_from="flod")
        with pytest.raises(ValueError, match=r"row 2: cv is no fold: 'first'"):
            write(IDS | columns("p", P) | {"cv": [None, "first", *["1"] * 10]}, learned_from="cv")


def test_the_same_opinions_are_finished_and_others_are_refused(tmp_path: Path) -> None:
    pl.DataFrame(IDS | columns("p", P)).write_csv(tmp_path / "p.csv")

    def run() -> None:
        source, identity = source_of(StoredConfig(str(tmp_path / "p.csv"), "none"), False)
        write_stored(
            Artefact(tmp_path / "store", "teacher", identity, [], tmp_path), source, ROWS, LABELS, "none", 1.0, False
        )

    run()
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir())
    run()
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()) == before
    pl.DataFrame(IDS | columns("p", P[::-1])).write_csv(tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"is finished, but was made differently(.|\n)*stored\.source\.sha256"):
        run()
    assert np.abs(log_softmax(LOGITS, axis=1) - np.log(P)).max() < 1e-9
