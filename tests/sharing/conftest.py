import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    """Weights and inputs are drawn anew for every test, and are the same in every run of it."""
    torch.manual_seed(0)
