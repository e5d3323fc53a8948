"""One model in several processes: `torchrun --nproc-per-node 2` starts this file."""

import torch
import torch.distributed as dist
from torch import nn


def train_two_steps(average: bool) -> list[float]:
    """The bias of each process's model after two steps on its share of the points."""
    rank, count = dist.get_rank(), dist.get_world_size()
    x = torch.arange(8.0).view(8, 1) / 8
    mine = x[rank::count]  # each of two processes takes every second point
    torch.manual_seed(0)  # all start with the same weights
    model = nn.Linear(1, 1)
    for _ in range(2):
        model.zero_grad()
        loss = (model(mine) - (2 * mine + 1)).square().mean()
        loss.backward()
        for parameter in model.parameters():
            if average:
                dist.all_reduce(parameter.grad)  # the sum over all processes
                parameter.grad /= count
            parameter.data -= 0.5 * parameter.grad  # the numbers, without history
    biases = [torch.zeros(1) for _ in range(count)]
    dist.all_gather(biases, model.bias.detach())
    return [bias.item() for bias in biases]


def main() -> None:
    """Join the other processes, train with and without averaging, and leave."""
    dist.init_process_group("gloo")
    for average in (True, False):
        biases = train_two_steps(average)
        if dist.get_rank() == 0:  # one of them prints for all
            name = "averaged" if average else "each alone"
            print(f"gradients {name:10}:", *(f"{bias:.4f}" for bias in biases))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
