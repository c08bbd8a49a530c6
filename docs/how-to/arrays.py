# %% [markdown]
# # Send arrays and tensors
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# The client sends uint8 and uint16 arrays, shaped (H, W) or (H, W, channels). It converts them to the pixel format in
# the model's resource, by the same rules that the server applies to image files.

# %%
import numpy as np
from PIL import Image

from segserve import BadRequestError, Client, SemanticResult

grey = np.asarray(Image.open("examples/coins/coins.png"))
client = Client()
print(client.model_info("coins").pixels)
# > PixelFormat(channels=1, dtype='UINT8', window=None)

# %% [markdown]
# Greyscale, RGB, RGBA (the alpha channel is dropped) and 16-bit arrays give the same result.

# %%
colour = np.dstack([grey, grey, grey])
with_alpha = np.dstack([colour, np.full_like(grey, 7)])
deep = grey.astype(np.uint16) * 257
arrays = (grey, colour, with_alpha, deep)
labels = [client.segment(array, model="coins", expect=SemanticResult).labels for array in arrays]
print([bool((each == labels[0]).all()) for each in labels])
# > [True, True, True, True]

# %% [markdown]
# The network gets the upper 8 of 16 bits. A 12-bit camera leaves the top bits empty, so scale its values first.

# %%
twelve_bits = grey.astype(np.uint16) << 4
scaled = client.segment(twelve_bits << 4, model="coins", expect=SemanticResult)
print(bool((scaled.labels == labels[0]).all()))
# > True

# %% [markdown]
# Float and boolean arrays are refused because their range is ambiguous. The error says what to send instead.

# %%
try:
    client.segment(grey / 255, model="coins")
except BadRequestError as error:
    print(error.message)
# > an array of pixels must be uint8 or uint16, shaped (H, W) or (H, W, C) ... got float64 (303, 384): ...

# %% [markdown]
# Torch tensors work once they are on the CPU with channels last: `tensor.permute(1, 2, 0).cpu()`. OpenCV images are
# BGR: send `image[..., ::-1]`.

# %%
client.close()
