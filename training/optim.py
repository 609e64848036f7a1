"""Optimizers: torch's AdamW, AdamW with bf16 or int8 moments, and AdamW with GPT-J's placement of epsilon."""

import math

import torch

from utils.errors import UserError

STATE_BYTES = {"fp32": 8, "bf16": 4, "int8": 2.03}  # bytes per parameter; int8 stores a scale per 256 values


def optimizer_class(state_dtype: str, lr: float, seed: int) -> tuple[type, dict]:
    """The optimizer class and its keyword arguments for `--optim_state_dtype`; betas and epsilon are torch's."""
    common = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8}
    if state_dtype == "fp32":
        return torch.optim.AdamW, common | {"fused": True}
    if state_dtype == "bf16":
        return AdamW, common | {"state_dtype": torch.bfloat16, "seed": seed}
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UserError(f"--optim_state_dtype int8: run: pip install torchao==0.18.0 ({error})") from error
    return AdamW8bit, common


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019): m ← β1·m + (1−β1)·g, v ← β2·v + (1−β2)·g²,
    p ← p − lr·(u + weight_decay·p), where t counts from 1 and

        u = m/(1−β1ᵗ) / (√(v/(1−β2ᵗ)) + eps)            by default, or
        u = m/(√v + eps) · √(1−β2ᵗ)/(1−β1ᵗ)             with `early_eps`,

    and without `correct_bias` both βᵗ are taken as 0.

    Moments in bf16 (`state_dtype`) take half the memory and are stochastically rounded: rounded to nearest, v would
    never change with β2 = 0.999, since a change by 1/1000 is less than half of bf16's last bit (1/512). The random
    bits depend on `seed` and step only, so a resumed run draws the same ones.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        state_dtype: torch.dtype = torch.float32,
        early_eps: bool = False,
        correct_bias: bool = True,
        seed: int = 0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.state_dtype, self.early_eps, self.seed = state_dtype, early_eps, seed
        self.correct_bias = correct_bias
        self.register_load_state_dict_post_hook(AdamW._restore_dtype)

    def _restore_dtype(self) -> None:
        """load_state_dict casts moments to the dtype of their parameter; cast them back, which loses nothing."""
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(self.state_dtype)

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        generator = None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state(parameter)
                state["step"] += 1
                if generator is None:
                    seed = self.seed * 1_000_003 + int(state["step"])
                    generator = torch.Generator(parameter.device).manual_seed(seed)
                self._update(parameter, state, group, generator)
        return loss

    def _state(self, parameter) -> dict:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=self.state_dtype)
        return state

    def _update(self, parameter, state: dict, group: dict, generator: torch.Generator) -> None:
        beta1, beta2 = group["betas"]
        lr, eps, step = group["lr"], group["eps"], state["step"].item()
        weights, gradient = _local(parameter), _local(parameter.grad).float()
        m = _local(state["exp_avg"]).float().lerp_(gradient, 1 - beta1)
        v = _local(state["exp_avg_sq"]).float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = math.sqrt(1 - beta2**step) if self.correct_bias else 1
        first = 1 - beta1**step if self.correct_bias else 1
        # early_eps: √v + eps; otherwise √v + eps·√(1−β2ᵗ), which is the first formula multiplied out
        denominator = v.sqrt().add_(eps if self.early_eps else eps * root)
        weights.mul_(1 - lr * group["weight_decay"])
        weights.addcdiv_(m, denominator, value=-lr * root / first)
        for name, moment in (("exp_avg", m), ("exp_avg_sq", v)):
            exact = self.state_dtype == torch.float32
            _local(state[name]).copy_(moment if exact else round_stochastically(moment, generator))


def round_stochastically(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """fp32 -> bf16, stochastically rounded: bf16 is fp32 without its last 16 bits, so add random bits and truncate."""
    noise = torch.randint(0, 1 << 16, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    bits = x.contiguous().view(torch.int32).add(noise).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of an FSDP2 tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
