"""One peer of the engine on a U-Net forward: peers.py KIND MODEL_FOLDER THREADS, commands on stdin as forward_server takes them.

KIND is eager, channels_last, onnxruntime, openvino, or training (whole steps of PyTorch eager, lines "step BATCH SECONDS"; at the
end its peak memory); of the first two, resblock:CHANNELS:SIZE may stand for the folder. Each peer lives in a process of its own: the spinning thread pools
of several runtimes in one process slow each other three times.
"""
import json
import os
import resource
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")


def resblock(kind, channels, size):
    """A function (x, temb) -> anything that runs one ResNet block, and its inputs for n rows."""
    import torch
    from diffusers.models.resnet import ResnetBlock2D

    block = ResnetBlock2D(in_channels=channels, temb_channels=4 * channels, groups=32, eps=1e-5).eval()
    layout = torch.channels_last if kind == "channels_last" else torch.contiguous_format
    block.to(memory_format=layout)
    return block, lambda n: (torch.randn(n, channels, size, size).to(memory_format=layout), torch.randn(n, 4 * channels))


def unet(kind, folder, threads):
    """A function (x, t, labels) -> anything that runs one forward, and its inputs for n rows."""
    import torch
    from diffusers import UNet2DModel

    where = folder + "/unet" if os.path.isdir(folder + "/unet") else folder
    model = UNet2DModel.from_pretrained(where, low_cpu_mem_usage=False).eval()

    def call(x, t, y):
        return model(x, t, class_labels=y, return_dict=False)[0]

    def make(n):
        return inputs(model, n)

    if kind == "eager":
        return call, make
    if kind == "channels_last":
        model.to(memory_format=torch.channels_last)
        return (lambda x, t, y: call(x.to(memory_format=torch.channels_last), t, y)), make

    path = tempfile.gettempdir() + "/denoised-bench-%s.onnx" % os.path.basename(os.path.abspath(folder))
    if not os.path.exists(path):
        export(model, path)
    if kind == "onnxruntime":
        return onnxruntime(path, threads), make
    return openvino(path, threads), make


def export(model, path):
    import torch

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, t, y=None):
            return self.model(x, t, class_labels=y, return_dict=False)[0]

    batch = torch.export.Dim("B", min=1, max=64)
    example = [v for v in inputs(model, 2) if v is not None]
    shapes = ({0: batch},) * len(example)
    torch.onnx.export(Wrapper(), tuple(example), path, dynamo=True, dynamic_shapes=shapes, optimize=True)


def onnxruntime(path, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda *a: session.run(None, dict(zip(names, [v.numpy() for v in a if v is not None])))


def openvino(path, threads):
    import openvino as ov

    core = ov.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    compiled = {}

    def run(*a):
        a = [v for v in a if v is not None]
        n = a[0].shape[0]
        if n not in compiled:
            model = core.read_model(path)
            model.reshape({i.any_name: ov.PartialShape(list(v.shape)) for i, v in zip(model.inputs, a)})
            compiled[n] = core.compile_model(model, "CPU")
        return compiled[n]([v.numpy() for v in a])[0]

    return run


def inputs(model, n):
    import torch

    c = model.config
    size = c.sample_size if isinstance(c.sample_size, (list, tuple)) else (c.sample_size, c.sample_size)
    labels = torch.randint(0, c.num_class_embeds, (n,)) if c.num_class_embeds else None
    return torch.randn(n, c.in_channels, *size), torch.randint(0, 1000, (n,)), labels


def training(folder):
    """Forward, loss, backward, clipping, AdamW and the average of weights, on rows cut from pictures held in memory."""
    import torch
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    where = folder + "/unet" if os.path.isdir(folder + "/unet") else folder
    model = UNet2DModel.from_pretrained(where, low_cpu_mem_usage=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    noises, average = DDPMScheduler(), EMAModel(model.parameters(), decay=0.9999, foreach=True)

    def step(x, t, y):
        noise = torch.randn_like(x)
        out = model(noises.add_noise(x, noise, t), t, class_labels=y, return_dict=False)[0]
        torch.nn.functional.mse_loss(out, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())

    return step, lambda n: inputs(model, n)


def print_memory():
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


def main():
    kind, subject, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    import torch

    torch.set_num_threads(threads)
    if subject.startswith("resblock:"):
        run, make = resblock(kind, *map(int, subject.split(":")[1:]))
    elif kind == "training":
        run, make = training(subject)
    else:
        run, make = unet(kind, subject, threads)
    with torch.inference_mode(kind != "training"):
        for line in sys.stdin:
            _, n, seconds = line.split()
            args, times = make(int(n)), []
            run(*args)
            end = time.time() + float(seconds)
            while time.time() < end or len(times) < 3:
                start = time.perf_counter()
                run(*args)
                times.append((time.perf_counter() - start) * 1e3)
            print("R" + json.dumps(times), flush=True)
    if kind == "training":
        print_memory()


if __name__ == "__main__":
    main()
