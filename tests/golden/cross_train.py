#!/usr/bin/env python3
"""Random jobs on random UNet2DModels, by PyTorch and diffusers and by our trainer: cross_train.py TRAIN_STEPS [COUNT] [SEED] [DEVICE]

Not part of `make test` (needs torch and diffusers); run it after a change to the trainer, its kernels or its passes. TRAIN_STEPS is
build/tests/golden/train_steps. Each job: a network, a prediction, loss, weighting, optimizer, learning-rate schedule and EMA drawn
at random; losses, gradient norms, rates and decays of four steps, the first gradients, parameters and EMA at the end are compared.
The formulas here are written from the papers and their code, not from ours.
"""
import json
import math
import random
import subprocess
import sys
import tempfile
import warnings

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

sys.argv, arguments = sys.argv[:1] + ["-"], sys.argv
import cross_check  # noqa: E402  (its random_config)

warnings.filterwarnings("ignore")
TRAIN_STEPS = arguments[1]
COUNT = int(arguments[2]) if len(arguments) > 2 else 20
SEED = int(arguments[3]) if len(arguments) > 3 else 0
DEVICE = arguments[4] if len(arguments) > 4 else "cpu:0"
rng = random.Random(SEED)
cross_check.rng = rng

STEPS, ROWS, T = 4, 4, 1000
PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]
LOSSES = ["mse", "l1", "huber"]
WEIGHTINGS = ["uniform", "snr", "min_snr", "edm", "p2"]
OPTIMIZERS = ["adamw", "adam", "sgd"]
RATES = ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "one_cycle"]


def random_job():
    job = dict(
        prediction=rng.randrange(4), loss=rng.randrange(3), huber_delta=rng.choice([0.3, 1.0]), weighting=rng.randrange(5),
        snr_gamma=rng.choice([1.0, 5.0]), p2_gamma=rng.choice([0.5, 1.0]), p2_k=rng.choice([1.0, 2.0]), sigma_data=rng.choice([0.5, 1.0]),
        optimizer=rng.randrange(3), lr=rng.choice([1e-4, 1e-3]), beta1=rng.choice([0.9, 0.5]), beta2=rng.choice([0.999, 0.9]),
        eps=rng.choice([1e-8, 1e-3]), weight_decay=rng.choice([0.0, 0.1]), clip_norm=rng.choice([0.0, 0.1, 1.0, 100.0]),
        lr_schedule=rng.randrange(6), warmup_steps=rng.choice([0, 2, 3]), cycles=rng.choice([1, 2]), power=rng.choice([1.0, 2.0]),
        lr_end=rng.choice([0.0, 0.1]), ema_decay=rng.choice([0.9999, 0.5]), ema_every=rng.choice([1, 1, 2]),
        ema_warmup=rng.randrange(2), ema_power=rng.choice([0.75, 2 / 3]), micro_batch=rng.choice([1, 2, 4]), steps=10,
    )
    return job


def random_network(job):
    config, label = cross_check.random_config()
    while label == "identity" or (job["prediction"] == 3 and config["time_embedding_type"] == "learned"):  # a table has no place between
        config, label = cross_check.random_config()
    learned = job["prediction"] != 3 and rng.random() < 0.3
    config["out_channels"] = config["in_channels"] * (2 if learned else 1)
    return config, label, learned


def rates(job, optimizer):
    name, warm, steps = RATES[job["lr_schedule"]], job["warmup_steps"], job["steps"]
    if name == "polynomial":
        return get_polynomial_decay_schedule_with_warmup(optimizer, warm, steps, lr_end=job["lr_end"] * job["lr"], power=job["power"])
    if name == "one_cycle":
        more = {"pct_start": warm / steps} if warm else {}
        final = 0.04 / job["lr_end"] if job["lr_end"] else 1e300
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, job["lr"], total_steps=steps, cycle_momentum=False, final_div_factor=final, **more)
    if name == "constant":
        name = "constant_with_warmup"
    if name == "linear":  # diffusers' goes to 0; ours ends where it is told
        end = job["lr_end"]
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: k / warm if k < warm else end + (1 - end) * (steps - k) / (steps - warm))
    return get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=steps, num_cycles=job["cycles"])


def optimizer_of(job, model):
    plain = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() < 2]
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() >= 2]
    groups = [{"params": decayed, "weight_decay": job["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    if OPTIMIZERS[job["optimizer"]] == "sgd":
        return torch.optim.SGD(groups, lr=job["lr"], momentum=job["beta1"])
    cls = torch.optim.AdamW if OPTIMIZERS[job["optimizer"]] == "adamw" else torch.optim.Adam
    return cls(groups, lr=job["lr"], betas=(job["beta1"], job["beta2"]), eps=job["eps"])


def weight_of(job, snr, sigma):
    """Of the loss of what is predicted, from the papers' weight of the error of x0."""
    kind = WEIGHTINGS[job["weighting"]]
    if kind == "uniform":
        return torch.ones_like(snr)
    x0 = {"snr": snr, "min_snr": torch.clamp(snr, max=job["snr_gamma"]), "p2": snr / (job["p2_k"] + snr) ** job["p2_gamma"]}.get(kind)
    if kind == "edm":  # sigma of x = x0 + sigma n
        s2, d2 = 1 / snr, job["sigma_data"] ** 2
        x0 = (s2 + d2) / (s2 * d2)
    error = [1 / snr, 1 / (snr + 1), torch.ones_like(snr), sigma ** 2][job["prediction"]]
    return x0 * error


def loss_of(job, out, target):
    kind = LOSSES[job["loss"]]
    if kind == "huber":
        each = torch.nn.functional.huber_loss(out, target, reduction="none", delta=job["huber_delta"])
    else:
        each = (torch.nn.functional.mse_loss if kind == "mse" else torch.nn.functional.l1_loss)(out, target, reduction="none")
    return each.mean(dim=(1, 2, 3))


def cdf(x):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def variational(job, out, fraction, x0, xt, t, betas):
    """improved-diffusion's _vb_terms_bpd with a frozen mean, in its precision: tables in double, the rest in float."""
    abar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=betas.dtype), abar[:-1]])
    variance = betas * (1 - before) / (1 - abar)
    clipped = torch.log(torch.cat([variance[1:2], variance[1:]]))

    def at(values):
        return values.float()[t].view(-1, 1, 1, 1)

    out, fraction = out.detach(), (fraction + 1) / 2
    guess = {0: (xt - at((1 - abar).sqrt()) * out) / at(abar.sqrt()), 1: at(abar.sqrt()) * xt - at((1 - abar).sqrt()) * out,
             2: out}[job["prediction"]]
    of_x0, of_x = at(betas * before.sqrt() / (1 - abar)), at((1 - before) * (1 - betas).sqrt() / (1 - abar))
    mean, true = of_x0 * guess + of_x * xt, of_x0 * x0 + of_x * xt
    lv = fraction * at(betas.log()) + (1 - fraction) * at(clipped)
    kl = 0.5 * (-1 + lv - at(clipped) + torch.exp(at(clipped) - lv) + (true - mean) ** 2 * torch.exp(-lv))
    inv = torch.exp(-0.5 * lv)
    up, low = cdf(inv * (x0 - mean + 1 / 255)), cdf(inv * (x0 - mean - 1 / 255))
    log = torch.where(x0 < -0.999, up.clamp(min=1e-12).log(),
                      torch.where(x0 > 0.999, (1 - low).clamp(min=1e-12).log(), (up - low).clamp(min=1e-12).log()))
    each = torch.where((t == 0).view(-1, 1, 1, 1), -log, kl)
    return each.mean(dim=(1, 2, 3)) / math.log(2)


class Process:
    """x_t, target, weight and the network's time."""

    def __init__(self, job):
        self.flow = PREDICTIONS[job["prediction"]] == "flow"
        if self.flow:
            self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=T, shift=rng.choice([1.0, 3.0]))
        else:
            self.scheduler = DDPMScheduler(num_train_timesteps=T, beta_schedule=rng.choice(["linear", "squaredcos_cap_v2"]),
                                           prediction_type=PREDICTIONS[job["prediction"]])
        self.job = job

    def row(self, x0, noise, t):
        job, s = self.job, self.scheduler
        if self.flow:  # diffusers counts its timesteps down
            sigma = s.sigmas[T - 1 - t]
            time, wide = s.timesteps[T - 1 - t], sigma.view(-1, 1, 1, 1)
            xt, target = (1 - wide) * x0 + wide * noise, noise - x0
            snr = ((1 - sigma.double()) / sigma.double()) ** 2
            return xt, target, time, weight_of(job, snr, sigma.double())
        xt = s.add_noise(x0, noise, t)
        target = [noise, None, x0][job["prediction"]] if job["prediction"] != 1 else s.get_velocity(x0, noise, t)
        abar = torch.cumprod(1 - s.betas.double(), 0)[t]
        return xt, target, t, weight_of(job, abar / (1 - abar), (1 - abar).sqrt())


def feed(job, config, label, learned):
    h, w = config["sample_size"]
    data = {}
    for k in range(STEPS):
        x0 = torch.rand(ROWS, config["in_channels"], h, w) * 2.4 - 1.2
        data[f"s{k}.images"] = x0.clamp(-1, 1)
        data[f"s{k}.noise"] = torch.randn_like(x0)
        data[f"s{k}.timesteps"] = torch.randint(0, T, (ROWS,))
        if learned:  # at t = 0 other predictions of an untrained network lie where float has no digits left for the bin's mass
            data[f"s{k}.timesteps"][k % ROWS] = PREDICTIONS[job["prediction"]] != "epsilon"
        if label:
            data[f"s{k}.labels"] = torch.randint(0, 2, (ROWS,))
        if config["time_embedding_type"] == "fourier":  # of a logarithm
            data[f"s{k}.timesteps"] += data[f"s{k}.timesteps"] == 0
            if label == "timestep":
                data[f"s{k}.labels"] += 1
    return data


def by_torch(job, process, model, label, learned, data):
    told = {k: [] for k in ("loss", "grad_norm", "lr", "ema_decay")}
    optimizer = optimizer_of(job, model)
    schedule = rates(job, optimizer)
    named = dict(model.named_parameters())
    shadow = {n: p.detach().clone() for n, p in named.items()}
    ema = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=job["ema_decay"], use_ema_warmup=bool(job["ema_warmup"]), inv_gamma=1.0,
                   power=job["ema_power"])
    grad0, pending = {}, 1.0
    for k in range(STEPS):
        x0, noise, t = (data[f"s{k}.{n}"] for n in ("images", "noise", "timesteps"))
        xt, target, time, weight = process.row(x0, noise, t)
        out = model(xt, time, class_labels=data.get(f"s{k}.labels")).sample
        mean, fraction = out.chunk(2, dim=1) if learned else (out, None)
        each = loss_of(job, mean, target).double() * weight
        if learned:
            each = each + job["vlb_weight"] * T / 1000 * variational(job, mean, fraction, x0, xt, t, process.scheduler.betas.double())
        loss = each.mean()
        optimizer.zero_grad()
        loss.backward()
        if k == 0:
            grad0 = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip_norm"] or float("inf"))
        told["lr"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        pending *= ema.get_decay(k + 1)
        told["ema_decay"].append(1.0)
        if (k + 1) % job["ema_every"] == 0:
            told["ema_decay"][-1] = pending
            for n, p in named.items():
                shadow[n] -= (1 - pending) * (shadow[n] - p.detach())
            pending = 1.0
        told["loss"].append(float(loss))
        told["grad_norm"].append(float(norm))
    return told, grad0, {n: p.detach() for n, p in named.items()}, shadow


def compare(start, want, got, rough):
    """`rough`: the gradient jumps where the error is zero (l1), or single terms are far above the loss (learned variance)."""
    told, grad0, final, shadow = want
    bad, worst = [], {}

    def note(what, error, most):
        worst[what] = max(worst.get(what, 0), error)
        if not error <= most:
            bad.append(f"{what}: {error:.1e}")

    for name, most in (("loss", 1e-4), ("grad_norm", 3e-4), ("lr", 1e-6), ("ema_decay", 1e-6)):
        for a, b in zip(told[name], got[name].tolist()):
            note(name, abs(a - b) / max(abs(a), 1e-9), most)
    norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in grad0.values()))
    for name, g in grad0.items():
        note("gradient", float((got["grad0." + name] - g).norm()) / max(float(g.norm()), 1e-3 * norm), 1e-3 if rough else 1e-4)
    for which, values in (("final", final), ("ema", shadow)):
        for name, v in values.items():
            g, w = got[f"{which}.{name}"], grad0.get(name)
            if w is not None and float(w.norm()) < 1e-5 * norm:
                continue  # rounding, of which Adam makes whole steps
            moved = float((v - start[name]).norm())
            note(which, float((g - v).norm()) / max(moved, 1e-5 * float(v.norm()), 1e-9), 2e-2 if rough else 5e-3)
    return bad, worst


def main():
    torch.manual_seed(SEED)
    wrong = 0
    for i in range(COUNT):
        job = random_job()
        config, label, learned = random_network(job)
        job["vlb_weight"] = rng.choice([1.0, 0.5]) if learned else 1.0
        process = Process(job)
        model = UNet2DModel(**config)
        data = feed(job, config, label, learned)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder + "/m/unet")
            process.scheduler.save_pretrained(folder + "/m/scheduler")
            index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", type(process.scheduler).__name__], "unet": ["diffusers", "UNet2DModel"]}
            with open(folder + "/m/model_index.json", "w") as f:
                json.dump(index, f)
            save_file(data, folder + "/in.safetensors")
            call = [TRAIN_STEPS, folder + "/m", folder + "/in.safetensors", folder + "/out.safetensors", DEVICE]
            done = subprocess.run(call + [f"{k}={v!r}" for k, v in job.items()], capture_output=True, text=True)
            if done.returncode:
                wrong += 1
                print(i, "FAILED", done.stderr.strip(), json.dumps([job, config]), flush=True)
                continue
            got = load_file(folder + "/out.safetensors")
        bad, worst = compare(start, by_torch(job, process, model, label, learned, data), got, learned or LOSSES[job["loss"]] == "l1")
        wrong += bool(bad)
        names = [PREDICTIONS[job["prediction"]], LOSSES[job["loss"]], WEIGHTINGS[job["weighting"]], OPTIMIZERS[job["optimizer"]],
                 RATES[job["lr_schedule"]], "learned variance" if learned else ""]
        print(i, *names, " ".join(f"{k} {v:.0e}" for k, v in worst.items()), flush=True)
        if bad:
            print("   DIFFERS", sorted(set(bad))[:6], json.dumps([job, config]), flush=True)
    print(wrong, "wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
