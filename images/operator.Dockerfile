# The operator, and the sidecar of the gateways.
#   docker build -f images/operator.Dockerfile -t localhost/segserve-operator:0.1.0 .

FROM docker.io/library/python:3.11.14-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client/src client/src
COPY model_repo_builder/src model_repo_builder/src
COPY operator/src operator/src
COPY examples/coins examples/coins
RUN python3 -m venv /opt/segserve/venv \
 && /opt/segserve/venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[operator]'

FROM docker.io/library/python:3.11.14-slim-bookworm
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
