"""Fused linear heads: the same numbers as separate layers, and no task's gradient of the features by itself."""

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck

from polytask import balancing as B
from polytask import fused
from polytask.balancing.engines.rows import Rows, exact_products, products
from polytask.errors import RecipeError, ShapeError
from polytask.fused import fused_linear

WIDTHS = [1, 3, 1, 2]
TASKS = [f"t{k}" for k in range(len(WIDTHS))]


class Case:
    """A trunk, heads and a loss a task, in float64."""

    def __init__(self, rows=(7,), d=5, bias=True, dtype=torch.float64):
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, d, dtype=dtype)
        self.layers = [nn.Linear(d, width, bias=bias and k != 1, dtype=dtype) for k, width in enumerate(WIDTHS)]
        self.x = torch.randn(*rows, 4, dtype=dtype)

    def losses(self, run, handed, tasks=TASKS):
        there = [TASKS.index(task) for task in tasks]
        outs = run([handed[TASKS[k]] for k in there], [self.layers[k] for k in there])
        return {TASKS[k]: (out.sin() * (k + 1)).square().mean() for k, out in zip(there, outs, strict=True)}

    def parameters(self):
        return [*self.trunk.parameters(), *(p for layer in self.layers for p in layer.parameters())]

    def grads(self):
        found = [None if p.grad is None else p.grad.clone() for p in self.parameters()]
        for p in self.parameters():
            p.grad = None
        return found


def one_by_one(features, layers):
    return [layer(z) for z, layer in zip(features, layers, strict=True)]


def assert_equal(found, expected, tolerance=1e-12):
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == other.dtype
            assert torch.allclose(mine, other, rtol=0, atol=tolerance * float(other.abs().sum().clamp(min=1.0)))


@pytest.fixture
def unformed(monkeypatch):
    """Forming a single task's gradient is an error."""

    def fail(self, position):
        raise AssertionError("a row was formed")

    monkeypatch.setattr(fused.Products, "row", fail)


@pytest.mark.parametrize("rows", [(7,), (2, 3), (0,)], ids=["rows", "positions", "none"])
@pytest.mark.parametrize("alias", ["itself", "views"])
@pytest.mark.parametrize("present", [TASKS, TASKS[1:3], TASKS[:1]], ids=["all", "some", "one"])
def test_outputs_and_gradients_are_those_of_separate_layers(rows, alias, present):
    case = Case(rows)
    found = []
    for run in (fused_linear, one_by_one):
        z = case.trunk(case.x)
        handed = {task: z if alias == "itself" else z.view_as(z) for task in TASKS}
        outs = run([handed[task] for task in TASKS], case.layers)
        losses = {task: (out * (k + 1)).square().sum() for k, (task, out) in enumerate(zip(TASKS, outs, strict=True))}
        sum(losses[task] for task in present).backward()
        found.append([*(out.detach() for out in outs), *case.grads()])
    assert_equal(*found)


def pooled_one_by_one(features, layers, pool):
    read = {"mean": lambda z: z.mean((2, 3)), "first": lambda z: z[:, 0]}[pool]
    return [layer(read(z)) for z, layer in zip(features, layers, strict=True)]


SHAPES = {"mean": (9, 6, 2, 3), "first": (9, 4, 6)}


@pytest.mark.parametrize("pool", SHAPES)
@pytest.mark.parametrize("alias", ["itself", "views", "node"])
@pytest.mark.parametrize("present", [TASKS, TASKS[2:3]], ids=["all", "one"])
def test_pooled_features(pool, alias, present):
    case = Case(d=6)
    start = torch.randn(SHAPES[pool], dtype=torch.float64)
    found = []
    for run in (fused_linear, pooled_one_by_one):
        node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
        x = start.clone().requires_grad_()
        z = x * 1.0
        handed = {"itself": dict.fromkeys(TASKS, z), "views": {t: z.view_as(z) for t in TASKS}}.get(alias) or node(z)
        outs = run([handed[task] for task in TASKS], case.layers, pool)
        losses = {
            task: (out.sin() * (k + 1)).square().mean() for k, (task, out) in enumerate(zip(TASKS, outs, strict=True))
        }
        losses = {task: losses[task] for task in present}
        if alias == "node":
            node.backward(losses)
        else:
            sum(losses.values()).backward()
        found.append([x.grad, *(out.detach() for out in outs), *case.grads()])
    assert_equal(*found, tolerance=1e-9)


@pytest.mark.parametrize("pool", SHAPES)
def test_a_gradient_of_the_gradient_of_pooled_features(pool):
    case = Case(d=6)
    z = torch.randn(SHAPES[pool], dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda z: tuple(fused_linear([z] * len(TASKS), case.layers, pool)), (z,))


def test_no_gradient_of_features_that_need_none():
    case = Case()
    z = case.trunk(case.x).detach()
    outs = fused_linear([z] * len(TASKS), case.layers)
    sum(out.sum() for out in outs).backward()
    assert case.layers[0].bias.grad.tolist() == [7.0]


@pytest.mark.parametrize("method", ["mgda", "cagrad", "pcgrad", "nash_mtl", "graddrop", "upgrad"])
@pytest.mark.parametrize("rows", [(7,), (2, 3)], ids=["rows", "positions"])
def test_a_node_finds_the_same_direction(method, rows):
    case = Case(rows)
    found = []
    for run in (fused_linear, one_by_one):
        torch.manual_seed(1)
        node = B.Node(B.build(method, tasks=TASKS), tasks=TASKS)
        report = node.backward(case.losses(run, node(case.trunk(case.x))))
        found.append([*case.grads(), *([] if report.gramian is None else [report.gramian])])
    assert_equal(*found, tolerance=1e-9)


def test_a_node_forms_no_gradient_of_a_single_task(unformed):
    case = Case((40,), 32)
    node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
    node.backward(case.losses(fused_linear, node(case.trunk(case.x))))
    assert case.trunk.weight.grad is not None


def test_absent_tasks_leave_the_solve(unformed):
    case = Case((40,), 32)
    there = [TASKS[0], TASKS[3]]
    found = []
    for run in (fused_linear, one_by_one):
        node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
        node.backward(case.losses(run, node(case.trunk(case.x)), there))
        found.append(case.grads())
    assert_equal(*found, tolerance=1e-9)


def test_a_loss_of_only_some_outputs():
    # All heads run, but one has no loss in this step.
    case = Case((40,), 32)
    found = []
    for run in (fused_linear, one_by_one):
        node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
        losses = case.losses(run, node(case.trunk(case.x)))
        del losses[TASKS[1]]
        node.backward(losses)
        found.append(case.grads())
    assert_equal(*found, tolerance=1e-9)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_features_that_a_loss_reads_beside_its_head(first):
    case = Case((40,), 32)
    found = []
    for run in (fused_linear, one_by_one):
        node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
        handed = node(case.trunk(case.x))
        early = {task: z.square().mean() for task, z in handed.items()} if first else {}
        losses = case.losses(run, handed)
        late = {} if first else {task: z.square().mean() for task, z in handed.items()}
        node.backward({task: loss + (early | late)[task] for task, loss in losses.items()})
        found.append(case.grads())
    assert_equal(*found, tolerance=1e-9)


def test_hooks_of_aliases_see_and_change_the_gradient():
    case = Case((40,), 32)
    found, seen = [], []

    def in_place(gradient):
        seen.append(float(gradient.norm()))
        gradient.mul_(2.0)

    for run in (fused_linear, one_by_one):
        node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
        handed = node(case.trunk(case.x))
        handed[TASKS[0]].register_hook(in_place)
        handed[TASKS[1]].register_hook(lambda gradient: gradient * 3.0)
        node.backward(case.losses(run, handed))
        found.append(case.grads())
    assert_equal(*found, tolerance=1e-9)
    assert seen[0] == pytest.approx(seen[1])
    assert seen[0] > 0


def test_anomaly_detection_looks_at_the_numbers():
    case = Case((40,), 32)
    found = []
    for run in (fused_linear, one_by_one):
        with torch.autograd.set_detect_anomaly(True):
            node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
            node.backward(case.losses(run, node(case.trunk(case.x))))
        found.append(case.grads())
    assert_equal(*found, tolerance=1e-9)


def test_a_gradient_of_the_gradient():
    case = Case((3,))
    z = case.trunk(case.x).detach().requires_grad_()
    parameters = [p for layer in case.layers for p in layer.parameters()]

    def run(z, *given):
        for p, value in zip(parameters, given, strict=True):
            assert p is value
        return tuple(fused_linear([z.view_as(z) for _ in TASKS], case.layers))

    assert gradgradcheck(run, (z, *parameters))


def test_one_task_after_the_other():
    case = Case()
    found = []
    for run in (fused_linear, one_by_one):
        z = case.trunk(case.x)
        losses = case.losses(run, dict.fromkeys(TASKS, z))
        wanted = case.parameters()
        rows = [torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True) for loss in losses.values()]
        found.append([gradient for row in rows for gradient in row])
    assert_equal(*found)


def test_frozen_weights_get_no_gradient():
    case = Case()
    for p in case.layers[0].parameters():
        p.requires_grad_(False)
    found = []
    for run in (fused_linear, one_by_one):
        sum(case.losses(run, dict.fromkeys(TASKS, case.trunk(case.x))).values()).backward()
        found.append(case.grads())
    assert_equal(*found)
    assert found[0][2] is None


def test_outputs_may_be_written_into():
    case = Case()
    outs = fused_linear([case.trunk(case.x)] * len(TASKS), case.layers)
    others = [out.detach().clone() for out in outs[1:]]
    outs[0].mul_(2.0).sum().backward()
    assert case.layers[0].bias.grad.tolist() == [2.0 * 7]
    assert all(torch.equal(out, other) for out, other in zip(outs[1:], others, strict=True))


def test_full_precision_under_autocast():
    case = Case((40,), 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        node = B.Node(B.build("mgda", tasks=TASKS), tasks=TASKS)
        handed = node(case.trunk(case.x))
        outs = fused_linear([handed[task] for task in TASKS], case.layers)
        assert {out.dtype for out in outs} == {torch.float32}
        exact = one_by_one([handed[TASKS[0]].detach().float()], case.layers[:1])  # rounds under autocast
        losses = {task: out.square().mean() for task, out in zip(TASKS, outs, strict=True)}
        node.backward(losses)
    with torch.autocast("cpu", enabled=False):
        exact = case.layers[0](handed[TASKS[0]].detach().float()).detach()
    assert float((outs[0].detach() - exact).abs().max()) < 1e-6
    assert all(p.grad.dtype == torch.float32 for p in case.parameters())


def test_the_gramian_keeps_what_cancels_between_outputs():
    # The gradient of a softmax sums to zero over classes: with weights that have much in common, most cancels.
    torch.manual_seed(0)
    slopes = torch.randn(64, 6)
    slopes = torch.cat([part - part.mean(1, keepdim=True) for part in slopes.split(3, 1)], 1)
    weights = 100.0 + torch.randn(6, 32)
    kept = fused.Products(slopes, weights, [3, 3], torch.zeros(64, 32))
    rows = torch.stack([(slopes[:, a : a + 3].double() @ weights[a : a + 3].double()).flatten() for a in (0, 3)])
    expected = rows @ rows.T
    assert float((kept.gramian([0, 1]) - expected).abs().max()) < 1e-9 * float(expected.max())
    weighed = kept.weighted_sum([1], torch.tensor([2.0]))
    assert float((weighed.flatten() - 2 * rows[1]).abs().max()) < 1e-4 * float(rows[1].abs().max())


@pytest.mark.parametrize("form", [products, exact_products])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gramian_has_one_dtype_whether_rows_are_formed_or_not(form, dtype):
    # Processes with few rows form them; the Gramians of all processes are added.
    wide = torch.promote_types(dtype, torch.float32)
    slopes, heads = torch.ones(64, 3, dtype=wide), torch.ones(3, 8, dtype=wide)
    kept = fused.Products(slopes, heads, [1, 1, 1], torch.zeros(64, 8, dtype=dtype))
    rows = [fused.ProductRow.of(kept, k) for k in range(3)]
    unformed, formed = Rows(rows), Rows([kept.row(k) for k in range(3)])
    assert unformed.products(form).dtype == formed.products(form).dtype
    assert all(row.numbers is None for row in rows)
    assert torch.equal(unformed.products(form), formed.products(form))
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(unformed.weighted_sum(weights), formed.weighted_sum(weights))


def test_rows_are_formed_where_that_is_cheaper():
    kept = fused.Products(torch.randn(4, 60), torch.randn(60, 8), [30, 30], torch.zeros(4, 8))
    rows = [fused.ProductRow.of(kept, k) for k in range(2)]
    assert not kept.pays(2)
    found = Rows(rows).products(products)
    flat = torch.stack([kept.row(k).flatten() for k in range(2)])
    assert torch.allclose(found, flat @ flat.T)
    assert all(row.numbers is not None for row in rows)


def test_layers_run_as_they_are_where_there_is_more_to_them():
    case = Case()
    z = case.trunk(case.x)

    class Doubled(nn.Linear):
        def forward(self, features):
            return 2 * super().forward(features)

    doubled = Doubled(5, 1, dtype=torch.float64)
    outs = fused_linear([z, z], [doubled, case.layers[1]])
    assert torch.equal(outs[0], doubled(z))
    seen = []
    hook = case.layers[0].register_forward_hook(lambda module, given, made: seen.append(made))
    outs = fused_linear([z, z], case.layers[:2])
    hook.remove()
    assert torch.equal(seen[0], outs[0])
    other = fused_linear([z, z + 1], case.layers[:2])
    assert torch.equal(other[1], case.layers[1](z + 1))


def test_under_a_compiler_and_torch_func():
    case = Case()
    z = case.trunk(case.x).detach()
    expected = torch.cat(one_by_one([z] * len(TASKS), case.layers), 1)
    run = lambda z: torch.cat(fused_linear([z] * len(TASKS), case.layers), 1)  # noqa: E731
    assert torch.allclose(torch.func.vmap(run)(z[:, None]).squeeze(1), expected)
    assert torch.allclose(torch.compile(run, backend="eager", fullgraph=True)(z), expected)


def test_layers_that_do_not_fit_are_named():
    case = Case()
    z = case.trunk(case.x)
    with pytest.raises(ShapeError, match="4 layers and 2 features"):
        fused_linear([z, z], case.layers)
    with pytest.raises(ShapeError, match="Layer 1 reads 5 features"):
        fused_linear([z, z[:, :3]], case.layers[:2])
    with pytest.raises(ShapeError, match=r"Layer 0 reads 5 features; it was given \[7, 5\]"):
        fused_linear([z, z], case.layers[:2], "mean")
    with pytest.raises(RecipeError, match="none"):
        fused_linear([z, z], case.layers[:2], "nome")


def test_a_printed_row_shows_its_numbers():
    kept = fused.Products(torch.ones(4, 2), torch.ones(2, 3), [1, 1], torch.zeros(4, 3))
    row = fused.ProductRow.of(kept, 0)
    assert row.shape == (4, 3)
    assert torch.equal(row + 0, torch.ones(4, 3))
    assert "1., 1., 1." in repr(row)
