"""Parameters that are cut over processes are refused by gradient methods, and by them alone."""

import pytest
import torch.distributed as dist
from torch import nn

from polytask.balancing import build
from polytask.balancing import engine as make_engine
from polytask.errors import BalancerError


@pytest.fixture
def one_process(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 3)
        self.heads = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})

    def shared_parameters(self):
        return list(self.trunk.parameters())

    def task_parameters(self, task):
        return list(self.heads[task].parameters())


@pytest.mark.parametrize("at", ["parameters", "last", "features"])
def test_pieces_of_parameters_are_refused_with_what_to_use(one_process, at):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = Model()
    fully_shard(model.trunk, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(
        BalancerError, match=r"'CAGrad' needs .* \(FSDP\)\. .*or use a loss weighting such as 'uncertainty'"
    ):
        make_engine(build("cagrad", tasks=["a", "b"]), model, at=at)
    make_engine(build("uncertainty", tasks=["a", "b"]), model)


def test_whole_parameters_are_welcome_beside_the_imports(one_process):
    import torch.distributed.fsdp
    import torch.distributed.tensor

    assert torch.distributed.tensor.DTensor
    make_engine(build("cagrad", tasks=["a", "b"]), Model())
