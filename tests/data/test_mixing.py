"""The mixer draws every row once a pass, in an order that only (seed, source, pass) decides."""

import numpy as np
import pytest
import torch

from polytask import catalogue, registry
from polytask.data.mixing import Mixer
from polytask.data.sampling import Sampler
from polytask.data.source import TensorSource
from polytask.errors import DataError, RecipeError, ShapeError


def source(rows: int, task: str = "a") -> TensorSource:
    return TensorSource(torch.arange(rows).float()[:, None], {task: torch.arange(rows).float()})


def drawn(mixer: Mixer, steps: int, start: int = 0) -> list[list[tuple[int, list[float]]]]:
    return [
        [(part.source, part.batch.inputs[:, 0].tolist()) for part in mixer.draw(step)]
        for step in range(start, start + steps)
    ]


def sampler(name: str, **options) -> Sampler:
    return registry.build("samplers", name, options)


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (7, 7), (8, 1), (100, 33), (5, 64)])
def test_one_pass_has_every_row_once_in_batches_of_nearly_one_size(rows, size):
    mixer = Mixer([source(rows)], [size], sampler("proportional"), seed=1)
    batches = [batch for step in drawn(mixer, mixer.steps_per_epoch) for _, batch in step]
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_passes_differ_and_the_seed_decides():
    def two_passes(seed):
        return drawn(Mixer([source(50)], [50], sampler("proportional"), seed), 2)

    first = two_passes(3)
    assert first == two_passes(3)
    assert first[0] != first[1]
    assert first != two_passes(4)


def test_processes_share_each_batch_without_overlap():
    whole = drawn(Mixer([source(23)], [8], sampler("proportional"), 5), 6)
    shares = [drawn(Mixer([source(23)], [8], sampler("proportional"), 5, rank, 3), 6) for rank in range(3)]
    for step, parts in enumerate(whole):
        joined = [row for share in shares for row in share[step][0][1]]
        assert sorted(joined) == sorted(parts[0][1])


@pytest.mark.parametrize("name", sorted(catalogue.SAMPLERS))
def test_going_on_from_a_state_repeats_the_uninterrupted_draws(name):
    def make():
        mixer = Mixer([source(30), source(9, "b"), source(4, "c")], [5, 5, 5], sampler(name), seed=2)
        mixer.total_steps = 40
        return mixer

    straight = make()
    for task, loss in {"a": 2.0, "b": 1.0, "c": 3.0}.items():
        straight.observe({task: loss})
    before = drawn(straight, 12)
    state = straight.state_dict()
    expected = drawn(straight, 12, start=12)
    resumed = make()
    resumed.load_state_dict(state)
    assert drawn(resumed, 12, start=12) == expected
    assert before != expected


def test_a_small_source_is_shuffled_again_and_never_exhausted():
    mixer = Mixer([source(100), source(3, "b")], [10, 2], sampler("together"), seed=0)
    assert mixer.steps_per_epoch == 10
    small = [rows for step in drawn(mixer, 12) for number, rows in step if number == 1]
    assert len(small) == 12
    for one_pass in zip(small[::2], small[1::2], strict=True):
        assert sorted(one_pass[0] + one_pass[1]) == [0, 1, 2]


def test_round_robin_takes_turns():
    mixer = Mixer([source(4), source(4, "b"), source(4, "c")], [2, 2, 2], sampler("round_robin"), seed=0)
    assert [step[0][0] for step in drawn(mixer, 6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("proportional", {}, [0.1, 0.9]),
        ("uniform", {}, [0.5, 0.5]),
        ("sqrt", {}, [0.25, 0.75]),
        ("temperature", {"T": 2}, [0.25, 0.75]),
    ],
)
def test_draws_have_the_stated_frequencies(name, options, expected):
    mixer = Mixer([source(10), source(90, "b")], [5, 5], sampler(name, **options), seed=7)
    chosen = [mixer.choose(step)[0] for step in range(4000)]
    # Three standard deviations of a binomial share with 4000 draws.
    assert np.mean(chosen) == pytest.approx(expected[1], abs=3 * 0.5 / 4000**0.5)


def test_annealed_goes_from_proportional_towards_uniform():
    anneal = sampler("annealed", end=0.0)
    assert anneal.probabilities([10, 90], 0.0).tolist() == pytest.approx([0.1, 0.9])
    assert anneal.probabilities([10, 90], 1.0).tolist() == pytest.approx([0.5, 0.5])


def test_loss_driven_prefers_the_task_that_has_fallen_least():
    mixer = Mixer([source(10), source(10, "b")], [5, 5], sampler("loss_driven"), seed=0)
    for losses in ({"a": 1.0, "b": 4.0}, {"a": 0.1, "b": 3.6}):
        mixer.observe(losses)
    chosen = np.mean([mixer.choose(step)[0] for step in range(1000)])
    assert chosen == pytest.approx(0.9 * 0.9 + 0.05, abs=0.05)


def test_bad_samplers_are_refused():
    with pytest.raises(RecipeError, match=r"T is 0.5; it has to be at least 1"):
        sampler("temperature", T=0.5)
    with pytest.raises(RecipeError, match=r"Unknown sampler 'propotional'.*Did you mean 'proportional'"):
        sampler("propotional")
    with pytest.raises(RecipeError, match=r"Unknown option 'temp'"):
        sampler("temperature", temp=2)


def test_sources_with_unequal_rows_or_none_are_refused():
    with pytest.raises(ShapeError, match="Inputs have 3 rows but target 'a' has 2"):
        TensorSource(torch.zeros(3, 1), {"a": torch.zeros(2)})
    with pytest.raises(ShapeError, match=r"an input of shape \(2, 1\)"):
        TensorSource({"x": torch.zeros(3, 1), "y": torch.zeros(2, 1)}, {"a": torch.zeros(3)})
    with pytest.raises(DataError, match="no rows"):
        TensorSource(torch.zeros(0, 1), {"a": torch.zeros(0)})


def test_a_source_says_which_tasks_have_every_label():
    targets = {
        "all": torch.tensor([1.0, 2.0, 3.0]),
        "some": torch.tensor([1.0, float("nan"), 3.0]),
        "classes": torch.tensor([0, 1, 2]),
        "unknown_class": torch.tensor([0, -1, 2]),
        "half_a_row": torch.tensor([[1.0, float("nan")], [1.0, 1.0], [float("nan"), 0.0]]),
    }
    batch = TensorSource(torch.zeros(3, 1), targets).take(torch.tensor([2, 0]))
    assert batch.complete == {"all", "classes", "half_a_row"}
