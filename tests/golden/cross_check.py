#!/usr/bin/env python3
"""Random UNet2DModels, made by diffusers, through our engine: cross_check.py EVALUATE [COUNT] [SEED]

Not part of `make test` (needs torch and diffusers); run it after a change to models or kernels. EVALUATE is the program
build/tests/golden/evaluate. Prints each configuration's error relative to the largest output, on ref and cpu.
"""
import json
import random
import subprocess
import sys
import tempfile
import warnings

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
EVALUATE = sys.argv[1]
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 20
rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)

DOWN = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UP = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]


def random_config():
    levels = rng.choice([1, 2, 3])
    groups = rng.choice([1, 2, 4])
    channels = [groups * rng.choice([2, 3, 4, 5, 6, 8, 10, 16, 24]) for _ in range(levels)]
    kinds = [rng.randrange(3) for _ in range(levels)]
    unit = 2 ** (levels - 1)
    config = dict(
        sample_size=[unit * rng.randint(2, 7), unit * rng.randint(2, 7)],
        in_channels=rng.choice([1, 2, 3, 4, 8]),
        block_out_channels=channels,
        down_block_types=[DOWN[k] for k in kinds],
        up_block_types=[UP[rng.randrange(3)] for _ in range(levels)],
        layers_per_block=rng.choice([1, 2]),
        norm_num_groups=groups,
        norm_eps=rng.choice([1e-5, 1e-6]),
        attention_head_dim=rng.choice([None, 1, 3, 4, 8]),
        attn_norm_num_groups=rng.choice([None, groups]),
        act_fn=rng.choice(["silu", "swish", "mish", "gelu", "relu"]),
        resnet_time_scale_shift=rng.choice(["default", "scale_shift"]),
        downsample_type=rng.choice(["conv", "resnet"]),
        upsample_type=rng.choice(["conv", "resnet"]),
        downsample_padding=rng.choice([0, 1]),
        add_attention=rng.choice([True, False]),
        mid_block_scale_factor=rng.choice([1, 1.5]),
        mid_block_type=rng.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]),
        time_embedding_type=rng.choice(["positional", "fourier", "learned"]),
        time_embedding_dim=rng.choice([None, 20]),
        num_train_timesteps=1000,
        freq_shift=rng.choice([0, 1]) if channels[0] > 3 else 0,
        flip_sin_to_cos=rng.choice([True, False]),
        center_input_sample=rng.choice([True, False]),
    )
    config["out_channels"] = config["in_channels"] * rng.choice([1, 2])
    if config["attention_head_dim"] and config["attention_head_dim"] > min(channels):
        config["attention_head_dim"] = 1
    label = rng.choice([None, "table", "timestep", "identity"])
    if label == "table":
        config["num_class_embeds"] = 7
    elif label:
        config["class_embed_type"] = label
    return config, label


def inputs(config, label, n):
    h, w = config["sample_size"]
    width = config["time_embedding_dim"] or 4 * config["block_out_channels"][0]
    x = {"sample": torch.randn(n, config["in_channels"], h, w), "timestep": torch.randint(1, 999, (n,)).float()}
    if label == "table":
        x["class_labels"] = torch.randint(0, 7, (n,))
    elif label == "timestep":
        x["class_labels"] = torch.randint(1, 99, (n,))
    elif label == "identity":
        x["class_labels"] = torch.randn(n, width)
    return x


def main():
    torch.manual_seed(0)
    bad = 0
    for i in range(COUNT):
        config, label = random_config()
        model = UNet2DModel(**config).eval()
        for p in model.parameters():
            p.data += 0.05 * torch.randn_like(p)
        x = inputs(config, label, 5)
        learned = config["time_embedding_type"] == "learned"
        t = x["timestep"].long() if learned else x["timestep"]
        with torch.no_grad():
            want = model(x["sample"], t, class_labels=x.get("class_labels")).sample.permute(0, 2, 3, 1)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder + "/unet")
            save_file(x, folder + "/in.safetensors")
            for device in ("ref", "cpu"):
                done = subprocess.run([EVALUATE, folder + "/unet", folder + "/in.safetensors", folder + "/out.safetensors", device],
                                      capture_output=True, text=True)
                if done.returncode:
                    bad += 1
                    print(i, device, "FAILED", done.stderr.strip(), json.dumps(config))
                    continue
                got = load_file(folder + "/out.safetensors")["output"]
                error = float((got - want).abs().max() / want.abs().max())
                ok = error <= (1e-5 if device == "ref" else 3e-5)
                bad += not ok
                print(i, device, "%.2e" % error, "" if ok else "TOO LARGE " + json.dumps(config))
    print(bad, "bad")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
