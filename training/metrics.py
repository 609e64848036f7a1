"""metrics.jsonl and the progress bar of a training run."""

import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from training.flops import mfu
from utils.device import world_size
from utils.errors import UserError
from utils.io import atomic_write
from utils.progress import progress_bar

RECENT_STEPS = 20  # steps that the shown speed is averaged over


class Metrics(TrainerCallback):
    """Writes a line per step to metrics.jsonl (loss, learning rate, gradient norm, tokens/s, MFU, seconds) and shows
    a progress bar. Held-out losses have lines of their own."""

    def __init__(self, path: Path, tokens_per_step: int, flops_per_token: float, blocks_of: Callable, show_bar: bool):
        self.show_bar = show_bar
        self.path, self.tokens_per_step, self.blocks_of = path, tokens_per_step, blocks_of
        self.flops_per_token = flops_per_token

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        state.save_steps, state.eval_steps = args.save_steps, args.eval_steps  # not those stored in a checkpoint
        self.first_step, self.bar = state.global_step, None
        if state.is_world_process_zero:
            self._drop_steps_after(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Start the clock with the first step of this process: what comes before it is the held-out loss."""
        if self.bar is None:
            self.begun = time.monotonic()
            self.ends = deque([self.begun], maxlen=RECENT_STEPS)
            steps = {"total": state.max_steps, "initial": state.global_step, "unit": "step", "leave": True}
            self.bar = progress_bar("training", **steps, disable=not (self.show_bar and state.is_world_process_zero))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" not in logs:
            return
        names = ("loss", "learning_rate", "grad_norm", "tokens_per_s", "mfu")
        line = {name: logs.get(name) for name in names}
        self._write(state, line | {"seconds": round(self.ends[-1] - self.ends[-2], 4)})
        used = "" if line["mfu"] is None else f", MFU {line['mfu']:.1%}"
        self.bar.set_postfix_str(f"loss {logs['loss']:.3f}, {logs['tokens_per_s']:,.0f} tokens/s{used}", refresh=False)
        self.bar.update(state.global_step - self.bar.n)
        if not math.isfinite(logs["loss"]):
            self.bar.close()  # so that the message starts on a new line
            raise UserError(
                f"step {state.global_step}: the loss is {logs['loss']}, on "
                f"{', '.join(self.blocks_of(state.global_step))}; try a lower learning rate (train.py: --lr; "
                "gptj/run.py: optimizer.learning_rate)"
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        self._write(state, {"held_out_loss": metrics["eval_loss"]})

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.close()

    def tokens_per_s(self, state) -> float:
        """Mean over the steps of this process; steps before a resume do not count."""
        if self.bar is None:  # resumed after the last step
            return 0.0
        done = (state.global_step - self.first_step) * self.tokens_per_step
        return done / (time.monotonic() - self.begun)

    def speed(self, state) -> dict[str, float | None]:
        """Tokens/s and MFU of the recent steps, without the first one, which includes compilation, if there are others."""
        self.ends.append(time.monotonic())
        ends = list(self.ends)[1:] if len(self.ends) > 2 else list(self.ends)
        rate = (len(ends) - 1) * self.tokens_per_step / (ends[-1] - ends[0])
        return {"tokens_per_s": round(rate, 1), "mfu": self._mfu(rate)}

    def _mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation of the run's GPUs; None on a CPU, for which no peak is published."""
        if not torch.cuda.is_available():
            return None
        share = mfu(tokens_per_s, self.flops_per_token, torch.cuda.get_device_name(0), world_size())
        return share and round(share, 4)

    def held_out_losses(self) -> list[float]:
        return [line["held_out_loss"] for line in self._lines() if "held_out_loss" in line]

    def _write(self, state, content: dict) -> None:
        if state.is_world_process_zero:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step} | content) + "\n")

    def _lines(self) -> list[dict]:
        """All complete lines; a kill may have cut the last one."""
        lines = self.path.read_text().split("\n") if self.path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def _drop_steps_after(self, step: int) -> None:
        """Remove the lines of steps that are repeated after a resume."""
        lines = [line for line in self._lines() if line["step"] <= step]
        with atomic_write(self.path) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
