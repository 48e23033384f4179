"""Weights from the uncertainty of each task: learned, in closed form, or with a posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.balancing.loss.common import (
    EXPONENT_LIMIT,
    NonNegativeWeighting,
    bounded,
    check_positive,
    form_factors,
    present,
    scattered,
    working,
)


class Uncertainty(NonNegativeWeighting):
    r"""Weights from a learned noise level of every task.

    With :math:`s_k = \log \sigma_k^2` learned, the total is :math:`\sum_k c_k e^{-s_k} L_k + s_k / 2`, where
    :math:`c_k` is 1/2 for the regression form and 1 for the classification form. The weight is
    :math:`c_k e^{-s_k}`, which settles at :math:`1 / (2 L_k)` in both forms.

    The kind ``regression`` takes the regression form; every other kind (counts too: a Poisson likelihood that
    :math:`e^{-s}` tempers) takes the classification form. While a loss is exactly zero its weight grows, and
    stops at exp(60). A negative loss counts as zero within a step, and is an error at the epoch's end if it
    is so on average. An absent task has no weight and its :math:`s_k` gets no gradient; the others do not
    change.

    Args:
        forms: ``regression`` or ``classification`` for all tasks, or by task name; overrides the kind.

    Raises:
        BalancerError: at ``setup``, for an unknown task or form.

    Example:
        >>> method = Uncertainty()
        >>> method.setup(["price", "sold"], {"price": "regression", "sold": "binary"})
        >>> method.weigh(torch.tensor([4.0, 0.7]), ["price", "sold"])
        tensor([0.5000, 1.0000])

    Reference:
        Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
        and Semantics", CVPR 2018, the multi-task likelihoods.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "stateful"})
    needs_losses: bool = False
    factors: Tensor

    def __init__(self, forms: Mapping[str, str] | str | None = None) -> None:
        super().__init__()
        self.forms = forms

    def build_state(self, count: int) -> None:
        """All noise levels start at one."""
        self.register_buffer("factors", form_factors(self.tasks, self.kinds, self.forms))
        self.log_variance = nn.Parameter(torch.zeros(count))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The weights :math:`c_k e^{-s_k}`, shape ``[p]``."""
        losses = working(losses)
        log_variance = present(self, bounded(self.log_variance), tasks, losses)
        return present(self, self.factors, tasks, losses) * (-log_variance).exp()

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The total, as a function of the noise levels; a scalar."""
        losses = working(losses).clamp_min(0.0)
        log_variance = present(self, self.log_variance, tasks, losses)
        factors = present(self, self.factors, tasks, losses)
        return (factors * (-log_variance).exp() * losses + log_variance / 2.0).sum()

    def own_gradients(self, losses: Tensor, weights: Tensor, tasks: Sequence[str]) -> list[Tensor]:
        """Of the total with respect to :math:`s_k`: :math:`1 / 2 - w_k L_k`."""
        return [scattered(self, 0.5 - weights * working(losses).clamp_min(0.0), tasks)]


class UWSO(NonNegativeWeighting):
    r"""Softmax of the inverse losses: the best noise levels in closed form, softened.

    Weights :math:`\omega_k = \exp(1 / (T L_k)) / \sum_j \exp(1 / (T L_j))`, with the losses taken as
    constants; they sum to one over the present tasks. The method is not scale-free: T has the unit of
    one over a loss, and has to be tuned. As a loss goes to zero the smallest positive loss takes all weight, so a
    zero loss counts as the smallest number the precision has: zero losses share the weight. A negative loss
    counts as zero within a step, and is an error at the epoch's end if it is so on average. There is no
    state.

    Args:
        temperature: T > 0; a large one makes the weights equal.

    Raises:
        BalancerError: if the temperature is not positive.

    Example:
        >>> method = UWSO(temperature=2.0)
        >>> method.setup(["a", "b"])
        >>> method.weigh(torch.tensor([1.0, 1.0]), ["a", "b"])
        tensor([0.5000, 0.5000])

    Reference:
        Kirchdorfer et al., "Analytical Uncertainty-Based Loss Weighting in Multi-Task Learning", GCPR 2024
        (arXiv 2408.07985), the definition of UW-SO.
    """

    traits: frozenset[str] = frozenset({"permutation_equivariant", "identity_for_one_task"})

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_positive("uw_so: temperature", temperature)

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The softmax weights, shape ``[p]``."""
        losses = working(losses)
        inverse = 1.0 / losses.clamp_min(torch.finfo(losses.dtype).tiny)
        # Subtract before dividing by T: the largest exponent is then exactly zero and nothing overflows.
        return ((inverse - inverse.max()) / self.temperature).softmax(0)


class Bayesian(NonNegativeWeighting):
    r"""Weights drawn from a posterior over every task's log-precision.

    The log-precision :math:`t_k = -\log \sigma_k^2` has the prior :math:`N(0, P^2)` and the approximate
    posterior :math:`q_k = N(\mu_k, v_k)`, with :math:`\mu_k` and :math:`\log v_k` learned. A loss that stands
    for n observations has the negative log-likelihood :math:`n (c_k e^{t_k} L_k - t_k / 2)`, the one of
    ``uncertainty``. The parameters minimise the negative evidence bound over n, whose expectation is exact:

    .. math:: \sum_k c_k e^{\mu_k + v_k / 2} L_k - \mu_k / 2 + KL(q_k \| N(0, P^2)) / n

    The weight of a step is :math:`c_k e^{t_k}` with :math:`t_k` drawn from :math:`q_k` by the method's own
    generator; its mean is :math:`c_k e^{\mu_k + v_k / 2}`, which is the weight if ``sample`` is false. For
    n to infinity and P to infinity this is ``uncertainty``.

    Zero losses, negative losses and absent tasks: as for ``uncertainty``; an absent task draws nothing. The
    prior keeps the weight of a zero loss finite.

    Args:
        forms: As for ``uncertainty``.
        observations: n: how many observations a loss stands for. The posterior's variance is about 2 / n.
        prior_scale: P, in natural logarithms of a precision.
        sample: Draw the weights, or use their mean.

    Raises:
        BalancerError: if ``observations`` or ``prior_scale`` is not positive, or at ``setup`` for an unknown
            task or form.

    Example:
        >>> method = Bayesian(sample=False, observations=1e6)
        >>> method.setup(["price", "sold"], {"price": "regression", "sold": "binary"})
        >>> method.weigh(torch.tensor([4.0, 0.7]), ["price", "sold"])
        tensor([0.5000, 1.0000])

    Reference:
        The likelihood is that of Kendall et al. 2018; the bound and its reparametrised
        posterior are those of Kingma and Welling, "Auto-Encoding Variational Bayes", 2014.
    """

    traits: frozenset[str] = frozenset({"random", "stateful"})
    needs_losses: bool = False
    factors: Tensor

    def __init__(
        self,
        forms: Mapping[str, str] | str | None = None,
        observations: float = 100.0,
        prior_scale: float = 10.0,
        sample: bool = True,
    ) -> None:
        super().__init__()
        self.forms = forms
        self.observations = check_positive("bayesian: observations", observations)
        self.prior_scale = check_positive("bayesian: prior_scale", prior_scale)
        self.sample = sample

    def build_state(self, count: int) -> None:
        """Precisions start at one, their variance at what n observations leave."""
        variance = 1.0 / (self.observations / 2.0 + self.prior_scale**-2)
        self.register_buffer("factors", form_factors(self.tasks, self.kinds, self.forms))
        self.mean = nn.Parameter(torch.zeros(count))
        self.log_variance = nn.Parameter(torch.full((count,), math.log(variance)))

    def weigh(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """A draw of :math:`c_k e^{t_k}`, or its mean; shape ``[p]``."""
        losses = working(losses)
        mean = present(self, bounded(self.mean), tasks, losses)
        highest = math.log(min(self.prior_scale**2, 40.0))
        variance = present(self, bounded(self.log_variance, highest), tasks, losses).exp()
        if self.sample:
            noise = torch.randn(len(tasks), generator=self.generator, dtype=torch.float64).to(losses)
            exponent = mean + variance.sqrt() * noise
        else:
            exponent = mean + variance / 2.0
        return present(self, self.factors, tasks, losses) * exponent.clamp_max(1.4 * EXPONENT_LIMIT).exp()

    def objective(self, losses: Tensor, tasks: Sequence[str]) -> Tensor:
        """The negative evidence bound over n, up to a constant; a scalar."""
        losses = working(losses).clamp_min(0.0)
        mean = present(self, self.mean, tasks, losses)
        log_variance = present(self, self.log_variance, tasks, losses)
        factors = present(self, self.factors, tasks, losses)
        variance = log_variance.exp()
        fit = factors * (mean + variance / 2.0).exp() * losses - mean / 2.0
        divergence = ((mean.square() + variance) / self.prior_scale**2 - log_variance) / 2.0
        return (fit + divergence / self.observations).sum()
