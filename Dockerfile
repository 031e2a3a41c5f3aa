# The server as an image: small, without root, and fit for a read-only root file system.
#
#   docker build --build-arg TORCH=cpu --build-arg PIP_EXTRA_INDEX_URL=URL -t lokr-serve:cpu .
#
# where URL is an index with CPU builds of torch; and TORCH=cu130, with one that has those, for
# NVIDIA GPUs. TORCH is the local version of torch's build,
# so an index that lacks it fails the build, rather than giving an image of another kind.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH=cpu
ARG EXTRAS=s3,tracing
# Read by pip where they are given; they do not reach the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/lokr-serve
# torch alone in a layer: it is most of the image, and changes least.
COPY constraints.txt ./
RUN /opt/lokr-serve/bin/pip install -c constraints.txt \
      "$(grep '^torch==' constraints.txt)+${TORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY lokr_core lokr_core
COPY lokr_serve lokr_serve
# What only builds and installs is left behind; byte code stays, as none can be written later.
RUN /opt/lokr-serve/bin/pip install -c constraints.txt ".[${EXTRAS}]" \
 && /opt/lokr-serve/bin/pip check \
 && rm -rf /opt/lokr-serve/lib/python3*/site-packages/torch/include \
           /opt/lokr-serve/lib/python3*/site-packages/torch/test \
 && find /opt/lokr-serve/lib/python3*/site-packages/torch/bin \
         -type f ! -name torch_shm_manager -delete \
 && /opt/lokr-serve/bin/pip uninstall --yes pip setuptools

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="lokr-serve" \
      org.opencontainers.image.description="gRPC inference server for one base model and many LoKr adapters" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# torch looks its user's name up.
RUN groupadd --gid 10001 lokr \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin lokr
COPY --from=build /opt/lokr-serve /opt/lokr-serve
# Whatever is written goes to /tmp, the one place that has to be writable.
ENV PATH=/opt/lokr-serve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/cache/huggingface \
    HF_HUB_OFFLINE=1 \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    TRITON_CACHE_DIR=/tmp/cache/triton
WORKDIR /tmp
USER 10001:10001
# Inference, administration, metrics and probes.
EXPOSE 50051 50052 9090
STOPSIGNAL SIGTERM
HEALTHCHECK NONE
ENTRYPOINT ["lokr-serve"]
CMD ["--help"]
