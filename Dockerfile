# The image whose containers `launch/tpu_train.sh --gke` starts: Python 3.12, the packages of requirements.lock.txt,
# libtpu in the version that this jax asks for, gcsfuse, and the code of this folder.
#   docker build -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/onesug:TAG . && docker push REGION-docker.pkg.dev/...
FROM python:3.12-slim-bookworm

ARG GOOGLE=https://packages.cloud.google.com/apt
RUN apt-get update && apt-get install -y --no-install-recommends curl ca-certificates fuse procps \
 && curl -fsSL $GOOGLE/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc \
 && echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] $GOOGLE gcsfuse-bookworm main" > /etc/apt/sources.list.d/gcsfuse.list \
 && apt-get update && apt-get install -y --no-install-recommends gcsfuse \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /onesug/code
COPY requirements.lock.txt ./
RUN python -m venv /onesug/venv \
 && /onesug/venv/bin/pip install --no-cache-dir -r requirements.lock.txt \
 && /onesug/venv/bin/pip install --no-cache-dir -c requirements.lock.txt "jax[tpu]"
COPY . .
