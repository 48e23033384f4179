r"""Linear heads of several tasks as one matrix product, whose gradients need not be formed.

With features z ``[rows, d]`` and heads :math:`y_k = z W_k^\top + b_k`, all outputs are one product of z and the
stacked weights. Task k's gradient of z is :math:`B_k W_k`, where :math:`B_k` is the gradient of its outputs. So the
inner product of two tasks' gradients is :math:`\langle B_i^\top B_j, W_i W_j^\top \rangle`, and a weighted sum of
all is one product again: a balance node needs no task's gradient by itself.
"""

from polytask.fused.linear import full_precision, fused_linear, is_hooked, one_by_one
from polytask.fused.products import ProductRow, Products, common_products

__all__ = [
    "ProductRow",
    "Products",
    "common_products",
    "full_precision",
    "fused_linear",
    "is_hooked",
    "one_by_one",
]
