"""A tiny model of M3's shape in training: attention, a router, grouped experts, FSDP2 and AdamW."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

HIDDEN, INTER, EXPERTS, VOCAB, LAYERS = 16, 12, 4, 32, 2


class _Sum(torch.autograd.Function):
    """Adds what the ranks of a group hold; each rank's gradient is its own."""

    @staticmethod
    def forward(context, tensor: torch.Tensor, group) -> torch.Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(context, gradient: torch.Tensor):
        return gradient, None


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_and_up_projs = nn.Parameter(torch.randn(EXPERTS, HIDDEN, 2 * INTER) * 0.1)
        self.down_projs = nn.Parameter(torch.randn(EXPERTS, INTER, HIDDEN) * 0.1)
        self.ep: DeviceMesh | None = None

    def split(self, ep: DeviceMesh) -> None:
        """Gives each rank of the mesh its experts."""
        for name in ("gate_and_up_projs", "down_projs"):
            setattr(self, name, nn.Parameter(distribute_tensor(getattr(self, name).data, ep, [Shard(0)])))
        self.ep = ep

    def forward(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        up, down = self.gate_and_up_projs, self.down_projs
        if self.ep is not None:
            assert isinstance(up, DTensor) and isinstance(down, DTensor)
            up, down = up.to_local(), down.to_local()
            weights = weights.chunk(self.ep.size(), -1)[self.ep.get_local_rank()]
        gate, value = torch.einsum("th,ehi->eti", x, up).chunk(2, -1)
        out = torch.einsum("eti,eih,te->th", nn.functional.silu(gate) * value, down, weights)
        return out if self.ep is None else _Sum.apply(out, self.ep.get_group())


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.o_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.norm = nn.LayerNorm(HIDDEN)
        self.experts = Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.o_proj(torch.softmax(q @ k.T, -1) @ v)
        return x + self.experts(x, torch.softmax(self.gate(x), -1))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class Training:
    """Model, optimizer, scheduler, random numbers and the place in the data. `seed` is of the first values."""

    def __init__(self, mesh: DeviceMesh, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Model()
        if "ep" in (mesh.mesh_dim_names or ()):
            for layer in self.model.layers:
                layer.experts.split(mesh["ep"])
                fully_shard(layer.experts, mesh=mesh["fsdp"], shard_placement_fn=lambda _: Shard(1))
        everybody = init_device_mesh("cpu", (mesh.size(),))  # all but the experts lies over all ranks
        for layer in self.model.layers:
            fully_shard(layer, mesh=everybody)
        fully_shard(self.model, mesh=everybody)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.position = 0

    def step(self) -> float:
        # The same tokens on each rank, so that they do not depend on how many there are.
        tokens = torch.randint(0, VOCAB, (9,))
        self.position += 1
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(tokens[:-1]), tokens[1:])
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def state(self) -> dict:
        """All that a save holds; AdamW's moments are there from the first step on."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "dataloader": {"position": self.position, "files": ["a", "b"]},
        }

    def resume(self, state: dict) -> None:
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        self.position = state["dataloader"]["position"]

    def parameters(self) -> dict[str, torch.Tensor]:
        """Whole, on every rank."""
        return {
            name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
            for name, value in self.model.state_dict().items()
        }
