# infinitevl serve in a container; docs/scaling.md says how to run it.
#   docker build -t infinitevl .                            on a CPU
#   docker build -t infinitevl --build-arg DEVICE=cuda .    on NVIDIA GPUs
ARG DEVICE=cpu

FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY infinitevl ./infinitevl

FROM base AS cpu
ARG EXTRAS=serve
RUN pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu ".[${EXTRAS}]"

# torch brings CUDA's libraries; Triton compiles a small C file for each kernel.
FROM base AS cuda
ARG EXTRAS=serve
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install -c constraints.txt ".[${EXTRAS}]"

FROM ${DEVICE}
RUN useradd --create-home --uid 10001 infinitevl && install -d -o infinitevl -m 700 /state
USER infinitevl
WORKDIR /home/infinitevl
VOLUME /state
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["infinitevl", "serve", "--host", "0.0.0.0", "--port", "8000", "--state-dir", "/state"]
