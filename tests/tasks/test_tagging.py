"""Tags: chains against enumeration, entities against seqeval, losses that padding does not touch."""

import itertools

import numpy as np
import pytest
import torch
from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from polytask.errors import DataError, RecipeError, ShapeError
from polytask.tasks import tagging
from polytask.tasks.crf import best_path, log_partition, with_transitions
from polytask.tasks.metrics_tags import count_entities
from polytask.tasks.spans import TagSet, repaired

NAN = float("nan")
PREFIXES = {"bio": "BI", "bioes": "BIES"}
STRICT = {"bio": IOB2, "bioes": IOBES}


def tag_set(scheme, types=("A", "B-x")):
    return TagSet(("O", *(f"{prefix}-{kind}" for prefix in PREFIXES[scheme] for kind in types)), scheme)


def random_rows(tags, generator, count=6):
    """Tag numbers with padding, and the same as lists of names."""
    lengths = generator.integers(1, 10, count)
    numbers = generator.integers(0, len(tags.names), (count, 10))
    numbers[np.arange(10) >= lengths[:, None]] = -1
    return numbers, [[tags.names[tag] for tag in row if tag >= 0] for row in numbers]


def chain(rows=4, width=5, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, width, k, generator=generator, dtype=torch.float64)
    transitions = torch.randn(rows, k + 2, k, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([width, 1, 3, 2])[:rows]
    return scores, transitions, torch.arange(width) < lengths[:, None]


def path_scores(scores, transitions, row, length):
    """Every path of a row, with its score by the definition."""
    k = scores.shape[2]
    for path in itertools.product(range(k), repeat=length):
        total = transitions[row, k, path[0]] + transitions[row, k + 1, path[-1]]
        total = total + sum(scores[row, place, tag] for place, tag in enumerate(path))
        yield path, total + sum(transitions[row, a, b] for a, b in itertools.pairwise(path))


def test_the_partition_and_the_best_path_are_those_of_all_paths():
    scores, transitions, present = chain()
    found, best = log_partition(scores, transitions, present), best_path(scores, transitions, present)
    for row, length in enumerate(present.sum(1).tolist()):
        paths = dict(path_scores(scores, transitions, row, length))
        torch.testing.assert_close(found[row], torch.stack(list(paths.values())).logsumexp(0))
        assert tuple(best[row, :length].tolist()) == max(paths, key=paths.get)
        assert (best[row, length:] == -1).all()


def test_the_chain_loss_is_the_likelihood_of_the_tags_and_sums_over_unknown_ones():
    scores, transitions, present = chain()
    raw = with_transitions(scores.masked_fill(~present[..., None], NAN), transitions[:1]).requires_grad_()
    targets = torch.tensor([[0, 2, -1, 1, 0], [2, -1, -1, -1, -1], [-1, 1, 1, -1, -1], [0, 0, -1, -1, -1]])
    task = tagging("t", ["a", "b", "c"], scheme="none", crf=True)
    losses = task.loss(raw, targets)
    shared = transitions[:1].expand_as(transitions)
    for row, length in enumerate(present.sum(1).tolist()):
        paths = dict(path_scores(scores, shared, row, length))
        fitting = [
            s for path, s in paths.items() if all(t in (-1, p) for t, p in zip(targets[row], path, strict=False))
        ]
        wanted = torch.stack(list(paths.values())).logsumexp(0) - torch.stack(fitting).logsumexp(0)
        torch.testing.assert_close(losses[row], wanted)
    losses.sum().backward()
    assert raw.grad.isfinite().all()
    torch.testing.assert_close(task.units(targets), torch.tensor([4, 1, 2, 2]))


def test_a_constrained_path_is_the_best_of_those_that_the_scheme_allows():
    tags = tag_set("bio", ("A", "B"))
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(30, 4, 5, generator=generator)
    task = tagging("t", tags.names, constrained=True)
    kept = task.kept(raw).long()
    assert not tags.breaks(kept.numpy()).any()
    for row in range(5):
        allowed = [p for p in itertools.product(range(5), repeat=4) if not tags.breaks(np.array([p])).any()]
        logs = raw[row].log_softmax(1)
        assert tuple(kept[row].tolist()) == max(allowed, key=lambda p: sum(logs[i, t] for i, t in enumerate(p)))
    assert tags.breaks(tagging("t", tags.names).kept(raw).long().numpy()).any()


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_entities_are_those_of_seqeval_in_both_modes(scheme):
    tags, generator = tag_set(scheme), np.random.default_rng(0)
    for _ in range(60):
        numbers, names = random_rows(tags, generator)
        found = {strict: tags.spans(numbers, strict) for strict in (False, True)}
        spans = {
            strict: sorted(
                (int(r), int(a), int(b), tags.types[k])
                for r, a, b, k in zip(s.row, s.start, s.stop, s.kind, strict=True)
            )
            for strict, s in found.items()
        }
        assert spans[False] == sorted((r, a, b + 1, k) for r, row in enumerate(names) for k, a, b in get_entities(row))
        strict = Entities(names, STRICT[scheme]).entities
        assert spans[True] == sorted((r, e.start, e.end, e.tag) for r, row in enumerate(strict) for e in row)


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_scores_are_those_of_seqeval(scheme):
    tags, generator = tag_set(scheme, ("A", "B", "C")), np.random.default_rng(1)
    task = tagging("t", tags.names, scheme=scheme)
    for turn in range(20):
        true, true_names = random_rows(tags, generator, 12)
        # Half of the tags are right, so that some entities are.
        guess = np.where(generator.random(true.shape) < 0.3, generator.integers(0, len(tags.names), true.shape), true)
        guess = np.where(true < 0, -1, guess)
        if turn % 2:  # a type that is never predicted
            guess[np.isin(guess, [n for n, name in enumerate(tags.names) if name.endswith("C")])] = 0
        guess_names = [[tags.names[tag] for tag in row if tag >= 0] for row in guess]
        scores = np.where(guess < 0, NAN, guess)
        report = classification_report(true_names, guess_names, output_dict=True, zero_division=0)
        found = count_entities(scores, true, None, tags)
        for at, kind in enumerate(tags.types):
            if found.seen[at]:
                for key, values in (("precision", found.precision), ("recall", found.recall), ("f1-score", found.f1)):
                    assert values[at] == pytest.approx(report[kind][key])
                assert found.true[at] == report[kind]["support"]
        for name, kind in (("f1", "micro"), ("macro_f1", "macro"), ("weighted_f1", "weighted")):
            assert task.metrics[name].compute(scores, true, None) == pytest.approx(report[f"{kind} avg"]["f1-score"])
        strict = classification_report(
            true_names, guess_names, output_dict=True, mode="strict", scheme=STRICT[scheme], zero_division=0
        )
        assert task.metrics["strict_f1"].compute(scores, true, None) == pytest.approx(strict["micro avg"]["f1-score"])
        right = sum(a == b for p, q in zip(true_names, guess_names, strict=True) for a, b in zip(p, q, strict=True))
        assert task.metrics["accuracy"].compute(scores, true, None) == pytest.approx(right / (true >= 0).sum())


def test_a_row_of_weight_two_counts_like_two_rows_and_no_entity_at_all_is_undefined():
    tags = tag_set("bio", ("A",))
    true, guess = np.array([[1, 2, 0], [1, 0, 1]]), np.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    task = tagging("t", tags.names)
    for metric in task.metrics.values():
        weighted = metric.compute(guess, true, np.array([1.0, 2.0]))
        assert weighted == pytest.approx(metric.compute(guess[[0, 1, 1]], true[[0, 1, 1]], None))
    assert np.isnan(task.metrics["f1"].compute(np.zeros((1, 2)), np.zeros((1, 2), dtype=np.int64), None))


def test_untagged_words_count_in_no_metric():
    task = tagging("t", tag_set("bio", ("A",)).names)
    true, guess = np.array([[1, -1, 0]]), np.array([[1.0, 1.0, 0.0]])
    assert task.metrics["f1"].compute(guess, true, None) == 1.0
    assert task.metrics["accuracy"].compute(guess, true, None) == 1.0


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_repairing_keeps_the_entities_and_mends_the_scheme(scheme):
    tags, generator = tag_set(scheme), np.random.default_rng(2)
    for _ in range(40):
        _, names = random_rows(tags, generator)
        for row in names:
            mended = repaired(row, scheme)
            assert get_entities(mended) == get_entities(row)
            assert not tags.breaks(np.array([[tags.names.index(tag) for tag in mended]])).any()


@pytest.mark.parametrize("crf", [False, True])
def test_padding_changes_neither_losses_nor_gradients_nor_tags(crf):
    task = tagging("t", ["a", "b", "c"], scheme="none", crf=crf)
    scores, transitions, present = chain()
    targets = torch.randint(0, 3, present.shape, generator=torch.Generator().manual_seed(3)).masked_fill(~present, -1)

    def run(width):
        raw = torch.full((4, width, 3), NAN, dtype=torch.float64)
        raw[:, :5] = scores.masked_fill(~present[..., None], NAN)
        raw.requires_grad_()
        whole = with_transitions(raw, transitions[0]) if crf else raw
        losses = task.loss(whole, targets)
        losses.sum().backward()
        return losses, raw.grad[:, :5], task.kept(whole)[:, :5]

    for first, second in zip(run(5), run(9), strict=True):
        torch.testing.assert_close(first, second, equal_nan=True)


def test_decoding_gives_as_many_tags_as_words():
    task = tagging("t", ["B-X", "O"])
    raw = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [NAN, NAN]]])
    assert task.decode(task.kept(raw))[""].tolist() == ["B-X O", "B-X"]


def test_fitting_counts_the_tags_and_says_which_do_not_fit():
    assert tagging("t", scheme="none").fitted(torch.tensor([[0, 3, -1]])).target.classes == ("0", "1", "2", "3")
    with pytest.raises(DataError, match=r"'t' has the target 5 in row 0, column 1"):
        tagging("t", ["O", "B-X"]).fitted(torch.tensor([[0, 5]]))
    with pytest.raises(ShapeError, match="tags for 3 words, but the text has 2"):
        tagging("t", ["O", "B-X"]).loss(torch.zeros(1, 2, 2), torch.tensor([[0, 1, 0]]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheme": "boi"}, "Did you mean 'bio'"),
        ({"classes": ["NN", "O"]}, "no tags such as: NN"),
        ({"classes": ["E-X", "O"]}, "no tags such as: E-X"),
        ({"scheme": "none", "repair": True}, "repair is True"),
        ({"scheme": "none", "constrained": True}, "constrained is True"),
        ({"metrics": ["auroc"]}, "Unknown metric 'auroc'"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, text):
    with pytest.raises(RecipeError, match=text):
        tagging("t", **{"classes": ["B-X", "O"], **options})


@pytest.mark.parametrize("crf", [False, True])
def test_raw_outputs_flow_through_loss_score_and_decode(crf):
    task = tagging("t", ["B-X", "I-X", "O"], crf=crf)
    raw = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    raw = with_transitions(raw, torch.zeros(5, 3)) if crf else raw
    target = torch.tensor([[0, 1, 2, 2, 2, 0], [2, 2, 2, 2, 2, 2], [2, 0, 1, 1, 2, 2], [2, 2, 2, 2, 2, 0]])
    assert task.loss(raw, target).shape == (4,)
    kept = task.kept(raw)
    assert [len(text.split()) for text in task.decode(kept)[""]] == [6] * 4
    for metric in task.metrics.values():
        assert 0 <= metric.compute(task.score(kept), target.numpy(), np.ones(4)) <= 1
