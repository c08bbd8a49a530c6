# Triton, and the agent beside it.
#   docker build -f images/server.Dockerfile -t localhost/segserve-server:0.1.0 .
# A newer Triton is --build-arg TRITON=26.10, and images.server.tritonVersion of the chart. Older ones than 26.04 have
# known holes. A release pins the base by digest: --build-arg BASE=nvcr.io/nvidia/tritonserver@sha256:...

ARG TRITON=26.04
ARG BASE=nvcr.io/nvidia/tritonserver:${TRITON}-py3
FROM ${BASE}
LABEL org.opencontainers.image.title="segserve server" \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /src
COPY images/server.lock ./
# The lock is complete. In a folder of its own: nothing of the base image changes, and Triton's Python steps find these versions first.
# ONNX Runtime is for networks on a CPU, in tiles or views: their step is one of Python's on every image.
# Nobody can write there later. Of Kubernetes' client, the classes of the API are not used: 55 MB are removed. Of the rest,
# only what is imported is compiled, at the end.
RUN python3 -m pip install --no-cache-dir --no-compile --no-deps --target /opt/segserve/python --require-hashes --requirement server.lock \
 && cd /opt/segserve/python/kubernetes && rm -r client/api aio/client/api \
 && python3 -m compileall -q -x /kubernetes/ /opt/segserve/python
# Triton before 24.11 gives its Python steps no PYTHONPATH.
RUN python3 -c "import sysconfig; open(sysconfig.get_path('purelib') + '/segserve.pth', 'w').write('/opt/segserve/python')"
COPY pyproject.toml README.md LICENSE ./
COPY client/src client/src
COPY model_repo_builder/src model_repo_builder/src
COPY operator/src operator/src
COPY examples/coins examples/coins
COPY docs/tutorial.md docs/
COPY docs/how-to/collect-samples.md docs/how-to/look.md docs/how-to/roll-out.md docs/how-to/
RUN PYTHONPATH=/opt/segserve/python \
    python3 -m pip install --no-cache-dir --target /opt/segserve/python --no-deps --no-build-isolation .

# Kernels are compiled here, for every processor of that level and not for the one that builds: the same two variables
# have to be there when they are loaded.
ARG PROCESSOR=x86-64-v3
ENV NUMBA_CPU_NAME=${PROCESSOR} \
    NUMBA_CPU_FEATURES= \
    PYTHONPATH=/opt/segserve/python \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN python3 -m segserve_builder.kernels
RUN PYTHONDONTWRITEBYTECODE= python3 -c "import segserve_builder.cluster.agent"

COPY examples/coins/model.yaml examples/coins/*.onnx /opt/segserve/examples/coins/
COPY examples/coins/golden /opt/segserve/examples/coins/golden

ENV SEGSERVE_TRITONSERVER=/opt/tritonserver/bin/tritonserver \
    SEGSERVE_BACKENDS=/opt/tritonserver/backends \
    SEGSERVE_NETWORK_BACKEND=onnxruntime \
    SEGSERVE_TRITON_LISTENS=pod
# All that may be written is mounted there by the pod.
ENV HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["python3", "-m", "segserve_builder.cluster.triton"]
