"""Methods that see two halves of a step's rows: MoDo, sampled SDMGrad and Auto-Lambda, against explicit arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polytask import balancing as B
from polytask.balancing import Losses, MicroBatch, build, engine
from polytask.balancing.functional.simplex_projection import project_onto_simplex
from polytask.balancing.transforms import chain, ema_gradients, log_losses, preference
from polytask.errors import BalancerError

TASKS = ("a", "b", "c")
ROWS = {"a": range(12), "b": (0, 1, 2, 7, 8), "c": (3, 4, 9)}
"""Labelled rows; the first half of the step are rows 0 to 5."""


class Model(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 4))
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
        self.double()

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


def data():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(12, width, generator=generator, dtype=torch.float64) for width in (3, 3))


def part_losses(model, rows, tap=None):
    """Sums over labelled rows among ``rows`` of every task's loss, and their counts."""
    x, y = data()
    z = {"z": model.trunk(x[rows])}
    features = dict.fromkeys(TASKS, z) if tap is None else tap(z)
    sums, counts = {}, {}
    for k, task in enumerate(TASKS):
        here = [i for i, row in enumerate(rows) if row in ROWS[task]]
        outputs = model.heads[task](features[task]["z"]).squeeze(1)
        sums[task] = (outputs[here] - y[rows][here, k]).square().sum()
        counts[task] = len(here)
    return sums, counts


def micro_batches(model, pieces=1):
    made = []
    for half, half_rows in enumerate((list(range(6)), list(range(6, 12)))):
        counts = {task: sum(row in ROWS[task] for row in half_rows) for task in TASKS}
        fractions = {task: counts[task] / len(ROWS[task]) for task in TASKS}
        for chunk in torch.tensor(half_rows).chunk(pieces):
            rows = chunk.tolist()

            def forward(tap, rows=rows):
                sums, _ = part_losses(model, rows, tap)
                return Losses({task: sums[task] / len(ROWS[task]) for task in TASKS})

            made.append(MicroBatch(TASKS, forward, half, fractions))
    return made


def mean_rows(model, rows, parameters):
    """Gradients of the mean losses over ``rows``, one row a task."""
    sums, counts = part_losses(model, rows)
    grads = [torch.autograd.grad(sums[t] / counts[t], parameters, retain_graph=True) for t in TASKS]
    return torch.stack([torch.cat([g.reshape(-1) for g in grad]) for grad in grads])


def grads_of(parameters):
    return torch.cat([p.grad.reshape(-1) for p in parameters])


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("options", [{}, {"memory_budget": 300}, {"at": "last"}])
def test_modo_steps_its_weights_by_the_product_of_two_halves(options, pieces):
    model = Model()
    method = build("modo", tasks=TASKS, gamma=0.3, rho=0.2)
    runner = engine(method, model, **options)
    shared = list(model.trunk[3].parameters()) if options.get("at") == "last" else model.shared_parameters()
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(3):
        first, second = (mean_rows(model, rows, shared) for rows in (range(6), range(6, 12)))
        weights = project_onto_simplex(weights - 0.3 * (first @ (second.T @ weights) + 0.2 * weights))
        model.zero_grad()
        report = runner.backward(micro_batches(model, pieces))
        torch.testing.assert_close(torch.stack(list(report.weights.values())), weights)
        whole = mean_rows(model, range(12), model.shared_parameters())
        torch.testing.assert_close(grads_of(model.shared_parameters()), weights @ whole)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    assert weights.max() > 0.4


def test_sampled_sdmgrad_takes_its_inner_steps():
    model = Model()
    method = build("sdmgrad", tasks=TASKS, lambda_=0.5, sampled=True, gamma=0.2, n_steps=7)
    first, second = (mean_rows(model, rows, model.shared_parameters()) for rows in (range(6), range(6, 12)))
    matrix = first @ second.T / mean_rows(model, range(12), model.shared_parameters()).norm(dim=1).mean() ** 2
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(7):
        weights = project_onto_simplex(weights - 0.2 * matrix @ (weights + 0.5 / 3))
    report = engine(method, model).backward(micro_batches(model))
    torch.testing.assert_close(torch.stack(list(report.weights.values())), weights + 0.5 / 3)


def test_sampled_sdmgrad_comes_to_the_exact_solution_on_equal_halves():
    rows = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    many = {"sampled": True, "gamma": 0.1, "n_steps": 5000}
    found = B.aggregate(rows, "sdmgrad", second=rows, **many)
    torch.testing.assert_close(found, B.aggregate(rows, "sdmgrad"), rtol=1e-6, atol=1e-8)


def test_a_task_whose_labels_lie_in_one_half_keeps_its_weight():
    method = build("modo", tasks=TASKS, gamma=0.1)
    cross = torch.diag(torch.tensor([1.0, torch.nan, 5.0], dtype=torch.float64))
    cross[1, :] = cross[:, 1] = torch.nan
    weights = method.weigh(torch.eye(3), None, TASKS, cross=cross)
    assert weights[1] == pytest.approx(1 / 3)
    assert weights[0] > 1 / 3 > weights[2]
    assert weights.sum() == pytest.approx(1.0)
    # A task that is absent keeps its weight, and the others share what is used.
    kept = method.weights.clone()
    both = method.weigh(torch.eye(2), None, ("a", "c"), cross=torch.zeros(2, 2))
    assert torch.equal(method.weights, kept)
    torch.testing.assert_close(both, kept[[0, 2]] / kept[[0, 2]].sum())


class Quadratic(nn.Module):
    """One shared vector and no heads: every derivative is known."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))

    def shared_parameters(self):
        return [self.theta]

    def task_parameters(self, task):
        return []


CENTRES = {0: torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double(), 1: torch.tensor([[2.0, 1.0], [-1.0, 1.0]]).double()}
STRENGTHS = torch.tensor([1.0, 3.0])


def quadratic_micro(model, fractions=(0.5, 0.5)):
    """Losses s_k |theta - c_k|^2 / 2 with other centres in each half, as shares of the step's mean."""
    made = []
    for half, centres in CENTRES.items():

        def forward(tap, centres=centres, share=fractions[half]):
            losses = STRENGTHS * (model.theta - centres).square().sum(1) / 2
            return Losses({"a": share * losses[0], "b": share * losses[1]})

        made.append(MicroBatch(("a", "b"), forward, half, dict.fromkeys(("a", "b"), fractions[half])))
    return made


@pytest.mark.parametrize("primary", [None, ["b"]])
def test_auto_lambda_takes_the_meta_gradient_of_a_quadratic(primary):
    """Central differences are exact on quadratics, so the closed form holds to rounding."""
    model, alpha, rate = Quadratic(), 0.05, 2.0
    method = build("auto_lambda", tasks=("a", "b"), virtual_lr=alpha, init=0.4, primary=primary)
    runner = engine(method, model, optimizer={"name": "sgd", "lr": rate})
    theta, strengths = model.theta.detach().clone(), STRENGTHS.double()
    weights = torch.full((2,), 0.4, dtype=torch.float64)
    worth = torch.tensor([1.0 if primary is None else 0.0, 1.0], dtype=torch.float64)
    for _ in range(3):
        slopes = strengths[:, None] * (theta - CENTRES[0])
        ahead = theta - alpha * weights @ slopes
        along = worth @ (strengths[:, None] * (ahead - CENTRES[1]))
        weights = weights - rate * (-alpha * slopes @ along)
        whole = weights @ (strengths[:, None] * (theta - (CENTRES[0] + CENTRES[1]) / 2))
        model.theta.grad = None
        micro = quadratic_micro(model)
        report = runner.backward(micro)
        runner.after_step(micro)
        torch.testing.assert_close(torch.stack(list(report.weights.values())).double(), weights, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.theta.grad, whole, rtol=1e-5, atol=1e-6)
        assert torch.equal(model.theta.detach(), theta)
        with torch.no_grad():
            model.theta -= 0.1 * model.theta.grad
        theta = model.theta.detach().clone()


def test_unequal_halves_weigh_as_means():
    """A half's losses are means over its own rows, whatever share of the step it is."""
    found = []
    for fractions in ((0.5, 0.5), (0.8, 0.2)):
        model = Quadratic()
        method = build("auto_lambda", tasks=("a", "b"), init=0.4)
        runner = engine(method, model, optimizer={"name": "sgd", "lr": 1.0})
        runner.backward(quadratic_micro(model, fractions))
        found.append(method.lambdas.detach().clone())
    torch.testing.assert_close(found[0], found[1])


def test_trying_a_step_leaves_no_trace():
    model = Model(dropout=0.5)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    method = build("auto_lambda", tasks=TASKS)
    seen = []
    plain = method.look_ahead

    def spied(trial, tasks):
        made = plain(trial, tasks)
        seen.append((torch.get_rng_state(), copy.deepcopy(model.state_dict())))
        return made

    method.look_ahead = spied
    engine(method, model).backward(micro_batches(model))
    assert torch.equal(seen[0][0], random)
    assert all(torch.equal(seen[0][1][key], value) for key, value in before.items())
    assert not torch.equal(method.lambdas, torch.full((3,), 0.1))


def test_auto_lambda_without_rows_to_judge_by_keeps_its_weights():
    model = Quadratic()
    method = build("auto_lambda", tasks=("a", "b"))
    engine(method, model).backward(quadratic_micro(model)[:1])
    assert torch.equal(method.lambdas.detach(), torch.full((2,), 0.1))


def test_own_loop_takes_the_other_half_as_second():
    model = Model()
    method, twin = (build("modo", tasks=TASKS, gamma=0.3) for _ in range(2))
    halves = []
    for rows in (range(6), range(6, 12)):
        sums, counts = part_losses(model, rows)
        halves.append({task: sums[task] / counts[task] for task in TASKS})
    report = B.backward(halves[0], model.shared_parameters(), balancer=method, second=halves[1])
    first, second = (mean_rows(model, rows, model.shared_parameters()) for rows in (range(6), range(6, 12)))
    expected = B.aggregate(first, twin, second=second)
    torch.testing.assert_close(grads_of(model.shared_parameters()), expected)
    torch.testing.assert_close(twin.weights, method.weights)
    for task in TASKS:
        assert report.losses[task].item() == pytest.approx((halves[0][task] + halves[1][task]).item() / 2)
    assert all(p.grad is not None for p in model.parameters())


def test_doors_hand_on_the_products():
    rows = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    cross = rows @ rows.flip(1).T
    weights = B.weights(rows @ rows.T, "modo", cross=cross)
    expected = project_onto_simplex(torch.full((2,), 0.5, dtype=torch.float64) - 0.1 * cross.mean(1))
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(B.aggregate(rows, "modo", second=rows.flip(1)), expected @ (rows + rows.flip(1)) / 2)


def test_the_log_says_so():
    described = engine(build("modo", tasks=TASKS), Model()).describe()
    assert described.endswith("(at: parameters), with the rows of every step in two halves.")


def test_a_chain_hands_the_products_on_as_it_changes_the_gradients():
    rows = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    other = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    chained = build(chain(preference([1.0, 2.0, 3.0]), "modo"), tasks=TASKS)
    factors = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    expected = project_onto_simplex(1 / 3 - 0.1 * factors * (rows @ other.T @ (factors / 3)))
    weights = chained.weigh(rows @ rows.T, None, TASKS, cross=rows @ other.T)
    torch.testing.assert_close(weights, factors * expected)
    with pytest.raises(BalancerError, match="works on whole gradients, and 'MoDo' needs"):
        chain(ema_gradients(), "modo")
    with pytest.raises(BalancerError, match="it tries out the losses themselves"):
        chain(log_losses(), "auto_lambda")


def test_what_cannot_work_says_what_can():
    model, modo = Model(), build("modo", tasks=TASKS)
    losses = {task: model.heads[task](model.trunk(torch.ones(2, 3).double())).sum() for task in TASKS}
    rows = torch.eye(3)
    for words, call in {
        "different rows are different numbers": lambda: engine(modo, model, at="features"),
        "whose features have nothing in common": lambda: B.Node(modo),
        "accumulate: exact": lambda: engine(modo, model, accumulate="micro"),
        "other half as second=": lambda: B.backward(losses, model.shared_parameters(), balancer=modo),
        "Use it in 'fit'": lambda: B.backward(losses, balancer=build("auto_lambda", tasks=TASKS)),
        "Pass the other half's Jacobian": lambda: B.aggregate(rows, "modo"),
        "no use of a second Jacobian": lambda: B.aggregate(rows, "mgda", second=rows),
        "second has shape": lambda: B.aggregate(rows, "modo", second=rows[:2]),
        "the products of the two halves": lambda: B.weights(rows, "modo"),
        "Did you mean 'a'": lambda: build("auto_lambda", tasks=TASKS, primary=["aa"]),
    }.items():
        with pytest.raises(BalancerError, match=words):
            call()
    with pytest.raises(BalancerError, match="no use of a second half"):
        B.backward(losses, model.shared_parameters(), balancer=build("mgda", tasks=TASKS), second=losses)


@pytest.mark.parametrize("name", ["modo", "sdmgrad", "auto_lambda", "imtl", "ldc_mtl"])
def test_a_resumed_run_goes_on_bit_for_bit(name):
    options = {"sampled": True} if name == "sdmgrad" else {}

    def started(seed):
        model = Model()
        method = build({"name": name, **options}, tasks=TASKS, seed=seed)
        return model, engine(method, model), torch.optim.SGD(model.parameters(), lr=0.1)

    def go(model, runner, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            micro = micro_batches(model)
            runner.backward(micro)
            optimizer.step()
            runner.after_step(micro)

    straight, first, second = started(0), started(0), started(1)
    go(*straight, 5)
    go(*first, 3)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    go(*second, 2)
    for expected, found in zip(straight[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(found, expected)
