"""The operator works where torch's DistributedDataParallel trains: two processes get the gradients of one."""

import subprocess
import sys
from pathlib import Path

import torch

from models.model import build_model

ROOT = Path(__file__).parent.parent
WORKER = """
import os, sys, torch
import torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel
from tests.test_distributed import model_and_tokens

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model, tokens = model_and_tokens(sys.argv[3])
parallel = DistributedDataParallel(model)
parallel(tokens[2 * rank : 2 * rank + 2]).square().mean().backward()
if rank == 0:
    torch.save([p.grad for p in model.parameters()], sys.argv[4])
distributed.barrier()
distributed.destroy_process_group()
"""


def model_and_tokens(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(name, 11, width=16, depth=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, torch.randint(11, (4, 40))


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    model, tokens = model_and_tokens("rrwkv")
    model(tokens).square().mean().backward()
    saved = tmp_path / "gradients.pt"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), "rrwkv", str(saved)], cwd=ROOT
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for parameter, gradient in zip(model.parameters(), torch.load(saved), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
