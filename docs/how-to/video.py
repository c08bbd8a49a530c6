# %% [markdown]
# # Segment a video
#
# Serve the example's models first: `segserve up -f examples/coins/model.yaml`.
#
# A model whose file has the stage `temporalSmoothing` steadies its answers over the frames of a stream. To every other
# model, as the one here, each frame is an image by itself; the calls are the same.

# %%
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from segserve import Client

photo = np.asarray(Image.open(Path(__file__).resolve().parents[2] / "examples/coins/coins.png"))


def camera(frames: int) -> Iterator[np.ndarray]:
    """Look at the coins from left to right. A file is read with cv2.VideoCapture or PyAV in the same way."""
    for number in range(frames):
        yield photo[:, 10 * number : 10 * number + 200]


# %% [markdown]
# A frame is sent when the one before was answered, in order, under the id of its stream. Without `stream_id` each call
# is a stream of its own.

# %%
client = Client()
for number, result in enumerate(client.segment_stream(camera(4), model="coins", stream_id="door")):
    print(number, result.labels.shape)
# > 0 (303, 200)
# > 1 (303, 200)
# > 2 (303, 200)
# > 3 (303, 200)

# %% [markdown]
# A camera that is faster than the model leaves frames out. Give each frame its number then, and the average knows how
# much time has passed.

# %%
every_third = ((number, frame) for number, frame in enumerate(camera(10)) if number % 3 == 0)
print(sum(1 for _ in client.segment_stream(every_third, model="coins", stream_id="door")))
# > 4

# %% [markdown]
# For a stream that must not end with one bad frame, `on_error="return"` puts a `Failure` in its place.
# OpenCV gives frames as BGR: send `frame[..., ::-1]`.

# %%
for result in client.segment_stream([photo, photo / 255, photo], model="coins", on_error="return"):
    print(type(result).__name__)
# > SemanticResult
# > Failure
# > SemanticResult
client.close()
