# specdec on an NVIDIA GPU, or on the CPU where the container is given none.
#   docker build -t specdec .
#   docker run --gpus all -p 8000:8000 -v specdec-cache:/cache specdec --model smollm2-135m
# The host needs an NVIDIA driver of at least 580.65.06, which CUDA 13.0 asks for, and the NVIDIA container toolkit.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

LABEL org.opencontainers.image.title="specdec" \
      org.opencontainers.image.description="Lossless tree speculative decoding, served over an OpenAI-compatible API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      com.nvidia.driver.least="580.65.06"

# gcc and Python's headers are for Triton, which compiles a launcher for each kernel
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home specdec \
    && install -d -o specdec -g specdec /cache

COPY --chown=specdec . /home/specdec/src
USER specdec
WORKDIR /home/specdec/src
ENV PATH=/home/specdec/venv/bin:$PATH
RUN python3 -m venv /home/specdec/venv \
    && pip install --no-cache-dir . \
    && rm -rf /home/specdec/src/*
WORKDIR /home/specdec

# models, measurements of earlier starts and compiled kernels outlive the container
ENV HF_HOME=/cache/huggingface \
    SPECDEC_CACHE=/cache/specdec \
    TRITON_CACHE_DIR=/cache/triton \
    SPECDEC_HOST=0.0.0.0 \
    SPECDEC_PORT=8000
VOLUME /cache

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m --start-interval=2s \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['SPECDEC_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["specdec", "serve"]
