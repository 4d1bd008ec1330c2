# specdec on an NVIDIA GPU:  docker build -t specdec . && docker run --gpus all -p 8000:8000 specdec
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home specdec

COPY --chown=specdec . /home/specdec/src
USER specdec
WORKDIR /home/specdec/src
ENV PATH=/home/specdec/venv/bin:$PATH
RUN python3 -m venv /home/specdec/venv \
    && pip install --no-cache-dir . \
    && rm -rf /home/specdec/src/*
WORKDIR /home/specdec

EXPOSE 8000
STOPSIGNAL SIGINT
ENTRYPOINT ["specdec"]
CMD ["serve", "smollm2-135m", "--host", "0.0.0.0"]
