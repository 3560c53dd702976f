"""Writes pil_resize.h: what PIL's BILINEAR (antialiased) makes of small pictures, as floats (mode F) and as bytes (mode L).

    python3 pil_resize.py > pil_resize.h        # made with Pillow 9.4.0
"""
from PIL import Image
import array

SIZES = [((9, 7), (4, 3)), ((8, 8), (5, 5)), ((4, 6), (7, 9)), ((20, 3), (3, 3)), ((5, 5), (5, 2)), ((16, 16), (1, 1)), ((6, 10), (12, 4))]


def noise(n, seed):  # make.c's
    out = []
    for _ in range(n):
        seed = (seed * 1664525 + 1013904223) % 2**32
        out.append(seed >> 24)
    return out


print("/* pil_resize.h - made by pil_resize.py. Sources are noise(h * w, case number + 1), one channel. */")
print("static const struct pil_case {\n    int h, w, to_h, to_w;\n    float f[108];\n    unsigned char l[108];\n} pil_cases[] = {")
for k, ((h, w), (th, tw)) in enumerate(SIZES):
    src = bytes(noise(h * w, k + 1))
    grey = Image.frombytes("L", (w, h), src)
    real = Image.frombytes("F", (w, h), array.array("f", list(src)).tobytes())
    f = list(real.resize((tw, th), Image.BILINEAR).getdata())
    b = list(grey.resize((tw, th), Image.BILINEAR).getdata())
    print(f"    {{ {h}, {w}, {th}, {tw},")
    for name, values, fmt in (("f", f, "{:.9g}f"), ("l", b, "{}")):
        cells = [fmt.format(v) if "." in fmt.format(v) or name == "l" else "{:.1f}f".format(v) for v in values]
        rows = [", ".join(cells[i:i + 8]) for i in range(0, len(cells), 8)]
        print("      { " + ",\n        ".join(rows) + " }" + ("," if name == "f" else " },"))
print("};")
