# %% [markdown]
# # Send arrays: grey, 16 bit, floats, tensors
#
# Serve the example's models first: `segserve up -f examples/coins/model.yaml`.
#
# An array is sent as uint8 or uint16, shaped (H, W) or (H, W, channels). The model's file says what the network takes;
# the client turns arrays into that by the rules by which the server turns files into it.

# %%
from pathlib import Path

import numpy as np
from PIL import Image

from segserve import BadRequestError, Client

grey = np.asarray(Image.open(Path(__file__).resolve().parents[2] / "examples/coins/coins.png"))
client = Client()
print(client.model_info("coins").pixels)
# > PixelFormat(channels=1, dtype='UINT8')

# %% [markdown]
# Grey, colour, colour with alpha (which is dropped) and 16 bits give the same answer.

# %%
colour = np.dstack([grey, grey, grey])
with_alpha = np.dstack([colour, np.full_like(grey, 7)])
deep = grey.astype(np.uint16) * 257
labels = [client.segment(array, model="coins").labels for array in (grey, colour, with_alpha, deep)]
print([bool((each == labels[0]).all()) for each in labels])
# > [True, True, True, True]

# %% [markdown]
# Of 16 bits the network gets the upper 8. A camera with 12 bits does not fill them: scale its values first.

# %%
twelve_bits = grey.astype(np.uint16) << 4
print(bool((client.segment(twelve_bits << 4, model="coins").labels == labels[0]).all()))
# > True

# %% [markdown]
# Floats and masks are refused, for nobody knows their range; the error says what to send.

# %%
try:
    client.segment(grey / 255, model="coins")
except BadRequestError as error:
    print(error.message)
# > an array of pixels is uint8 or uint16, got float64 (303, 384): where values are from 0 to 1, send (array * 255)...

# %% [markdown]
# Tensors of torch go as they are once they are on the CPU, with channels last: `tensor.permute(1, 2, 0).cpu()`.
# OpenCV's images are BGR: `image[..., ::-1]`.

# %%
client.close()
