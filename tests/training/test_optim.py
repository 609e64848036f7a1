"""AdamW against torch's, its bf16 moments against fp32 moments, and its state through a checkpoint."""

import copy

import pytest
import torch

from training.optim import AdamW, optimizer_class, round_stochastically


def make_model(seed: int = 0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))


def train(model, optimizer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_fp32_matches_torchs_adamw():
    models = make_model(), make_model()
    settings = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    ours = train(models[0], AdamW(models[0].parameters(), **settings), 50)
    theirs = train(models[1], torch.optim.AdamW(models[1].parameters(), **settings), 50)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


def test_early_eps_by_hand():
    """One weight, gradient 1: m = 0.1, v = 0.001; u = 0.1/(√0.001 + eps) · √0.001/0.1."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.tensor([1.0])
    AdamW([weight], lr=0.1, eps=0.5, weight_decay=0.1, early_eps=True).step()
    root = 0.001**0.5
    assert weight.item() == pytest.approx(2 - 0.1 * (root / (root + 0.5) + 0.2), abs=1e-6)


def test_bf16_moments_train_as_well():
    models = make_model(), make_model()
    full = train(models[0], AdamW(models[0].parameters(), lr=3e-3), 400)
    optimizer = AdamW(models[1].parameters(), lr=3e-3, state_dtype=torch.bfloat16)
    half = train(models[1], optimizer, 400)
    assert sum(half[-50:]) == pytest.approx(sum(full[-50:]), rel=0.05)
    assert {v.dtype for s in optimizer.state.values() for k, v in s.items() if k != "step"} == {torch.bfloat16}


def test_stochastic_rounding_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    for value in (1.001, -3.3333, 1e-12):
        x = torch.full((200_000,), value)
        rounded = round_stochastically(x, generator).float()
        assert len(rounded.unique()) == 2
        assert rounded.double().mean().item() == pytest.approx(value, rel=2e-4)
    exact = torch.tensor([0.0, 1.0, -2.5, 2.0**-130])
    assert round_stochastically(exact, generator).float().tolist() == exact.tolist()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_resumed_equals_uninterrupted(dtype, tmp_path):
    if dtype == "int8":
        pytest.importorskip("torchao")
    make, settings = optimizer_class(dtype, lr=1e-2, seed=3)
    model = make_model()
    optimizer = make(model.parameters(), **settings)
    train(model, optimizer, 5)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state")
    expected = train(model, optimizer, 5, first=5)
    fresh = copy.deepcopy(make_model(seed=1))
    again = make(fresh.parameters(), **settings)
    weights, state = torch.load(tmp_path / "state", weights_only=True)
    fresh.load_state_dict(weights)
    again.load_state_dict(state)
    assert train(fresh, again, 5, first=5) == expected
