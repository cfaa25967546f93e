"""Cost of averaging a module after each optimizer step: stab.attach against four libraries.

    python benchmarks/attach.py             # about a minute
    python benchmarks/attach.py --quick

On one thread of the processor, or with ``--device cuda``. Times are of the processor's work for
this process (``time.process_time``), which a busy machine disturbs least; on a GPU wall time. All
take turns, and the fastest of the rounds counts. ema-pytorch and timm are left out if they are not
installed.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable

import torch
from measure import bar, table
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import stab

DECAY = 0.999
FOUR = [
    "ema:half_life=693,burn_in=0",
    "ema:half_life=300,burn_in=0",
    "polyak:start=0",
    "swa:start=0,every=1",
]
LONG = "ema:half_life=6931,burn_in=0"  # decay 0.9999, kept in float64
MODELS = {  # name -> width and number of square layers
    "0.07 M, 4 tensors": (187, 2),
    "5 M, 10 tensors": (1024, 5),
    "11 M, 20 tensors": (1024, 10),
    "11 M, 320 tensors": (256, 160),
}
Update = Callable[[], object]


def module(width: int, depth: int, device: str) -> nn.Module:
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)]).to(device)


def lerp(model: nn.Module, averages: int) -> Update:
    """Written by hand: one call for each average, which checks nothing and casts nothing."""
    live = [parameter.detach() for parameter in model.parameters()]
    means = [[value.clone() for value in live] for _ in range(averages)]

    @torch.no_grad()
    def update() -> None:
        for mean in means:
            torch._foreach_lerp_(mean, live, 1 - DECAY)

    return update


def swa_utils(model: nn.Module) -> Update:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(model)
    return lambda: average.update_parameters(model)


def torch_ema(model: nn.Module) -> Update:
    from torch_ema import ExponentialMovingAverage

    return ExponentialMovingAverage(model.parameters(), DECAY, use_num_updates=False).update


def ema_pytorch(model: nn.Module) -> Update:
    from ema_pytorch import EMA as Average

    average = Average(model, beta=DECAY, update_every=1, update_after_step=0)
    return average.update


def timm(model: nn.Module) -> Update:
    from timm.utils.model_ema import ModelEmaV3 as Average

    average = Average(model, decay=DECAY)
    return lambda: average.update(model)


LIBRARIES = {"torch-ema": torch_ema, "ema-pytorch": ema_pytorch, "timm": timm}


def long_average(model: nn.Module) -> Update:
    """An average that took in 2,000 iterates."""
    attached = stab.attach(model, LONG)
    attached.load_state_dict(attached.state_dict() | {"step": 2000})
    return attached.update


def updates(model: nn.Module) -> dict[str, Update]:
    """Return what is compared, by name."""
    found: dict[str, Update] = {
        "torch.optim.swa_utils": swa_utils(model),
        "by hand: `_foreach_lerp_`": lerp(model, 1),
        "stab `ema`": stab.attach(model, FOUR[0]).update,
        "stab `polyak`": stab.attach(model, FOUR[2]).update,
        "stab `swa`, every update": stab.attach(model, FOUR[3]).update,
        "stab `ema` of half-life 6,931": long_average(model),
    }
    for name, make in LIBRARIES.items():
        try:
            found[name] = make(model)
        except Exception as e:  # not installed, or its own dependencies are not
            print(f"{name} is left out: {e}", file=sys.stderr)
    found["by hand, four averages"] = lerp(model, 4)
    found["stab, four averages"] = stab.attach(model, FOUR).update
    return found


def measure(model: nn.Module, seconds: float, rounds: int, device: str) -> dict[str, float]:
    """Return seconds of an update, by name. Weights move between two, as in training."""
    on_gpu = device != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    wait: Update = torch.cuda.synchronize if on_gpu else lambda: None
    found = updates(model)
    moves: list[Tensor] = [1e-3 * torch.randn_like(p) for p in model.parameters()]
    fastest = dict.fromkeys(found, float("inf"))
    for update in found.values():
        update()
    for _ in range(rounds):
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), moves)
        for name, update in found.items():
            wait()
            calls, began = 0, clock()
            while calls == 0 or clock() - began < seconds:
                update()
                calls += 1
            wait()
            fastest[name] = min(fastest[name], (clock() - began) / calls)
    return fastest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="two rounds of the smallest model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = dict(list(MODELS.items())[:1]) if given.quick else MODELS
    found: dict[str, dict[str, float]] = {}
    with bar("attach") as report:
        for n, (name, (width, depth)) in enumerate(models.items()):
            torch.manual_seed(0)
            model = copy.deepcopy(module(width, depth, given.device))
            rounds = 2 if given.quick else given.rounds
            found[name] = measure(model, 0.002, rounds, given.device)
            report((n + 1) / len(models))
    rows = [
        [
            name,
            *(
                f"{1e3 * times[name]:.3f} ({times[name] / times['torch.optim.swa_utils']:.2f})"
                for times in found.values()
            ),
        ]
        for name in next(iter(found.values()))
    ]
    print(table(["ms of an update (over swa_utils)", *found], rows))


if __name__ == "__main__":
    main()
