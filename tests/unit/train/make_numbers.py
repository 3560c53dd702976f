"""Prints numbers.h: what diffusers, PyTorch and Python's statistics say about schedules, averages, laws and weights.

    python make_numbers.py > numbers.h
"""
import math
from statistics import NormalDist

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

STEPS, WARM = 40, 5


def learning_rates(name, warm=WARM, **more):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=STEPS, **more)
    out = []
    for _ in range(STEPS):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


def polynomial(power, end):
    from diffusers.optimization import get_polynomial_decay_schedule_with_warmup as make
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, WARM, STEPS, lr_end=end, power=power)
    out = []
    for _ in range(STEPS):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


def one_cycle(steps, **more):
    """The rates as fractions of the peak."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False, **more)
    out = []
    for k in range(steps):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        if k + 1 < steps:
            schedule.step()
    return out


def averages(**more):
    ema = EMAModel([torch.nn.Parameter(torch.zeros(1))], **more)
    return [ema.get_decay(k) for k in (1, 2, 3, 4, 10, 100, 1000, 100000)]


def weights(alpha_bar, prediction):
    """Loss weights by the papers, over the error of what is predicted."""
    snr = alpha_bar / (1 - alpha_bar)
    sigma2, data2, gamma = 1 / snr, 0.25, 5.0
    x0 = {"snr": snr, "min_snr": min(snr, gamma), "edm": (sigma2 + data2) / (sigma2 * data2), "p2": snr / (1 + snr)}
    error = {"epsilon": (1 - alpha_bar) / alpha_bar, "v": 1 - alpha_bar, "sample": 1.0}[prediction]
    return [x0[k] * error for k in ("snr", "min_snr", "edm", "p2")]


def law(name, u, loc=0.0, scale=1.0):
    if name == "logit_normal":
        return 1 / (1 + math.exp(-(loc + scale * NormalDist().inv_cdf(u))))
    return 1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)


def row(values):
    return "{ " + ", ".join(f"{v:.9g}" for v in values) + " }"


def main():
    print("/* Made by make_numbers.py. */")
    print(f"enum {{ LR_STEPS = {STEPS}, LR_WARM = {WARM} }};")
    schedules = {
        "constant": learning_rates("constant_with_warmup"), "linear": learning_rates("linear"), "cosine": learning_rates("cosine"),
        "restarts": learning_rates("cosine_with_restarts", num_cycles=3), "polynomial": polynomial(2.0, 0.1),
        "one_cycle": one_cycle(STEPS), "one_cycle_warm": one_cycle(STEPS, pct_start=WARM / STEPS, final_div_factor=0.4),
    }
    for name, values in schedules.items():
        print(f"static const double lr_{name}[LR_STEPS] = {row(values)};")
    print(f"static const double lr_one_cycle_odd[] = {row(one_cycle(33))};")
    print(f"static const double ema_warm[] = {row(averages(decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75))};")
    print(f"static const double ema_plain[] = {row(averages(decay=0.99))};")
    print(f"static const double ema_floor[] = {row(averages(decay=0.9999, min_decay=0.5, use_ema_warmup=True, inv_gamma=2.0, power=2 / 3))};")
    bars = (0.9999, 0.9, 0.5, 0.2, 0.001)
    print(f"static const double alpha_bars[] = {row(bars)};")
    for prediction in ("epsilon", "v", "sample"):
        print(f"static const double weights_{prediction}[][4] = {{ {', '.join(row(weights(a, prediction)) for a in bars)} }};")
    points = (1e-6, 0.003, 0.1, 0.31, 0.5, 0.77, 0.93, 0.9999)
    print(f"static const double law_at[] = {row(points)};")
    print(f"static const double law_logit[] = {row([law('logit_normal', u) for u in points])};")
    print(f"static const double law_logit_moved[] = {row([law('logit_normal', u, -0.5, 1.7) for u in points])};")
    print(f"static const double law_mode[] = {row([law('mode', u, scale=1.29) for u in points])};")


main()
