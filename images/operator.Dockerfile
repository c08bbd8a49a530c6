# The operator, and the sidecar of the gateways.
#   docker build -f images/operator.Dockerfile -t localhost/segserve-operator:0.1.0 .
# A release pins the base by digest: --build-arg BASE=docker.io/library/python@sha256:...

ARG BASE=docker.io/library/python:3.11.14-slim-bookworm
FROM ${BASE} AS build
WORKDIR /src
COPY images/operator.lock ./
# Nobody can write there later. Of Kubernetes' client, the classes of the API are not used: 55 MB are removed. Of the rest,
# only what is imported is compiled, at the end.
RUN python3 -m venv --without-pip /opt/segserve/venv \
 && python3 -m pip --python /opt/segserve/venv/bin/python3 install --no-cache-dir --no-compile --no-deps --require-hashes --requirement operator.lock \
 && cd /opt/segserve/venv/lib/python3*/site-packages/kubernetes && rm -r client/api aio/client/api \
 && /opt/segserve/venv/bin/python3 -m compileall -q -x /kubernetes/ /opt/segserve/venv/lib
COPY pyproject.toml README.md LICENSE ./
COPY client/src client/src
COPY model_repo_builder/src model_repo_builder/src
COPY operator/src operator/src
COPY examples/coins examples/coins
COPY docs/tutorial.md docs/
COPY docs/how-to/collect-samples.md docs/how-to/look.md docs/how-to/roll-out.md docs/how-to/
RUN python3 -m pip --python /opt/segserve/venv/bin/python3 install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/segserve/venv/bin/python3 -c "import segserve_operator.main, segserve_operator.gateway_sync.__main__, \
    segserve_builder.capture.worker, segserve_builder.comparator.worker"

FROM ${BASE}
LABEL org.opencontainers.image.title="segserve operator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/segserve/venv /opt/segserve/venv
COPY examples/coins/golden /opt/segserve/examples/coins/golden
ENV PATH=/opt/segserve/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    USER=segserve \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["python3", "-m", "segserve_operator"]
