# %% [markdown]
# # Segment a video
#
# Run this in the repository's folder, as a script or in a notebook. Serve the example's models first:
# `segserve up --detach -f examples/coins/model.yaml`.
#
# A model with the stage `temporalSmoothing` smooths its results over the frames of a stream. Any other model, such as
# the one here, treats each frame as a separate image; the calls are the same.

# %%
from collections.abc import Iterator

import numpy as np
from PIL import Image

from segserve import Client, SemanticResult

photo = np.asarray(Image.open("examples/coins/coins.png"))


def camera(frames: int) -> Iterator[np.ndarray]:
    """Pan over the coins from left to right. cv2.VideoCapture reads files; PyAV's frames are sent as they are."""
    for number in range(frames):
        yield photo[:, 10 * number : 10 * number + 200]


# %% [markdown]
# Frames are sent in order, each after the previous one was answered, under the id of their stream. Without
# `stream_id` each call starts a stream of its own.

# %%
client = Client()
stream = client.segment_stream(camera(4), model="coins", expect=SemanticResult, stream_id="door")
for number, result in enumerate(stream):
    print(number, result.labels.shape)
# > 0 (303, 200)
# > 1 (303, 200)
# > 2 (303, 200)
# > 3 (303, 200)

# %% [markdown]
# If the camera is faster than the model, drop frames and pass each frame with its number, so that the smoothing knows
# how much time has passed.

# %%
every_third = ((number, frame) for number, frame in enumerate(camera(10)) if number % 3 == 0)
print(sum(1 for _ in client.segment_stream(every_third, model="coins", stream_id="door")))
# > 4

# %% [markdown]
# To keep a stream running after a bad frame, pass `on_error="return"`: a `Failure` takes the frame's place. OpenCV
# frames are BGR: send `frame[..., ::-1]`.

# %%
for outcome in client.segment_stream([photo, photo / 255, photo], model="coins", on_error="return"):
    print(type(outcome).__name__)
# > SemanticResult
# > Failure
# > SemanticResult
client.close()
