"""What "decay=0.999" means: each library's average of unit vectors is its vector of weights.

    pip install diffusers keras && pip install --no-deps timm
    python docs/decay.py

Iterate i is the i-th unit vector, iterate 0 the initial weights. Libraries that are not installed
are left out. Only one file of timm is loaded: the package imports torchvision, the averages do not.
"""

import importlib.metadata
import importlib.util
import os
import sys

import numpy as np
import torch
from torch_ema import ExponentialMovingAverage

from stab.stabilizers import parse
from stab.stabilizers.base import effective_half_life

DECAY, MOMENTS = 0.999, (100, 1000, 10_000)


class Point(torch.nn.Module):
    """A model whose one parameter is the iterate."""

    def __init__(self, size):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self):
        return self.w


def swa_utils(model):
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY)
    )
    return lambda _: average.update_parameters(model), lambda: average.module.w


def torch_ema(**options):
    def make(model):
        average = ExponentialMovingAverage(model.parameters(), decay=DECAY, **options)
        return lambda _: average.update(), lambda: average.shadow_params[0]

    return make


def timm(name, pass_step=False, **options):
    def make(model):
        path = importlib.metadata.distribution("timm").locate_file("timm/utils/model_ema.py")
        spec = importlib.util.spec_from_file_location("model_ema", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        average = getattr(module, name)(model, decay=DECAY, **options)
        return lambda t: average.update(
            model, **({"step": t} if pass_step else {})
        ), lambda: average.module.w

    return make


def diffusers(**options):
    def make(model):
        from diffusers.training_utils import EMAModel

        average = EMAModel(model.parameters(), decay=DECAY, **options)
        return lambda _: average.step(model.parameters()), lambda: average.shadow_params[0]

    return make


def keras(**options):
    def make(model):
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        variable = keras.Variable(model.w.detach().numpy(), dtype="float64")
        optimizer = keras.optimizers.SGD(
            learning_rate=1.0, use_ema=True, ema_momentum=DECAY, **options
        )
        optimizer.build([variable])

        def update(t):
            gradient = torch.zeros_like(model.w)
            gradient[t - 1], gradient[t] = 1, -1
            for _ in range(options.get("gradient_accumulation_steps", 1)):
                optimizer.apply([gradient], [variable])

        return update, lambda: optimizer._model_variables_moving_average[0].value

    return make


def stab(string):
    def make(model):
        average = parse(string).average
        state = average.init({"w": model.w.detach()}, max(MOMENTS))
        return lambda t: average.update(state, {"w": model.w.detach()}, t), lambda: average.read(
            state
        )["w"]

    return make


# What a reader would write -> the distribution it needs, and how it is made: (update(t), read()).
CALLS = {
    "get_ema_multi_avg_fn(0.999)": ("torch", swa_utils),
    "ExponentialMovingAverage(p, 0.999, use_num_updates=False)": (
        "torch-ema",
        torch_ema(use_num_updates=False),
    ),
    "ExponentialMovingAverage(p, 0.999)": ("torch-ema", torch_ema()),
    "ModelEmaV2(m, 0.999)": ("timm", timm("ModelEmaV2")),
    "ModelEmaV3(m, 0.999), update(m)": ("timm", timm("ModelEmaV3")),
    "ModelEmaV3(m, 0.999), update(m, step=t)": ("timm", timm("ModelEmaV3", pass_step=True)),
    "ModelEmaV3(m, 0.999, use_warmup=True), update(m, step=t)": (
        "timm",
        timm("ModelEmaV3", pass_step=True, use_warmup=True),
    ),
    "EMAModel(p, decay=0.999)": ("diffusers", diffusers()),
    "EMAModel(p, decay=0.999, use_ema_warmup=True)": ("diffusers", diffusers(use_ema_warmup=True)),
    "SGD(use_ema=True, ema_momentum=0.999)": ("keras", keras()),
    "the same, gradient_accumulation_steps=4": ("keras", keras(gradient_accumulation_steps=4)),
    "ema:half_life=693,burn_in=0": ("stab-gva", stab("ema:half_life=693,burn_in=0")),
}


def weights(make):
    """Return the weights of iterates 0..t at each moment."""
    model = Point(max(MOMENTS) + 1)
    with torch.no_grad():
        model.w[0] = 1
        update, read = make(model)
        found = {}
        for t in range(1, max(MOMENTS) + 1):
            model.w[t - 1] = 0
            model.w[t] = 1
            update(t)
            if t in MOMENTS:
                found[t] = read().detach().numpy()[: t + 1].copy()
    return found


def cell(w):
    """Return the half-life, and the share of iterates 0 and 1 if it is at least 1 %."""
    assert np.isclose(w.sum(), 1)
    held = f" ({100 * w[:2].sum():.0f} %)" if w[:2].sum() >= 0.01 else ""
    return f"{effective_half_life(w):,}{held}"


def main():
    print(f"| call | library | {' | '.join(f't = {t:,}' for t in MOMENTS)} |")
    print("| :-- | :-- |" + " --: |" * len(MOMENTS))
    for call, (distribution, make) in CALLS.items():
        try:
            version = importlib.metadata.version(distribution).partition("+")[
                0
            ]  # not that it is the CPU build
        except importlib.metadata.PackageNotFoundError:
            print(f"{distribution} is not installed", file=sys.stderr)
            continue
        found = weights(make)
        print(
            f"| `{call}` | {distribution} {version} | {' | '.join(map(cell, found.values()))} |",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
