"""What a team writes today: FastAPI, and a diffusers loop under a lock. fastapi_peer.py MODEL_FOLDER PORT THREADS"""
import base64
import io
import sys
import threading

import torch
import uvicorn
from diffusers import DDIMScheduler, UNet2DModel
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel

folder, port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
model = UNet2DModel.from_pretrained(folder + "/unet", low_cpu_mem_usage=False).eval()
lock = threading.Lock()
app = FastAPI()


class Request(BaseModel):
    n: int = 1
    seed: int = 0
    steps: int = 20
    class_label: int = 0
    scale: float = 1.0


def sample(r):
    scheduler = DDIMScheduler.from_pretrained(folder + "/scheduler")
    scheduler.set_timesteps(r.steps)
    generators = [torch.Generator().manual_seed(r.seed + i) for i in range(r.n)]
    x = torch.cat([torch.randn(1, 1, 28, 28, generator=g) for g in generators])
    y = torch.full((r.n,), r.class_label)
    for t in scheduler.timesteps:
        if r.scale != 1:
            both = torch.cat([y, torch.full_like(y, 10)])
            c, u = model(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
            out = u + r.scale * (c - u)
        else:
            out = model(x, t, class_labels=y).sample
        x = scheduler.step(out, t, x).prev_sample
    return ((x[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


@app.post("/generate")
def generate(r: Request):
    with lock, torch.inference_mode():
        pictures = []
        for pixels in sample(r):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            pictures.append(base64.b64encode(png.getvalue()).decode())
    return {"images": pictures}


uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
