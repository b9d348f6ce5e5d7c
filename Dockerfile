# The image whose containers `launch/tpu_train.sh --gke` starts: Python 3.12, the packages of requirements.lock.txt,
# what the extra tpu asks for (libtpu in the version of this jax, gcsfs), and the code of this folder.
#   docker build -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/onesug:TAG . && docker push REGION-docker.pkg.dev/...
FROM python:3.12-slim-bookworm

RUN apt-get update && apt-get install -y --no-install-recommends procps && rm -rf /var/lib/apt/lists/*

WORKDIR /onesug/code
COPY requirements.lock.txt ./
RUN python -m venv /onesug/venv \
 && /onesug/venv/bin/pip install --no-cache-dir -r requirements.lock.txt \
 && /onesug/venv/bin/pip install --no-cache-dir -c requirements.lock.txt "jax[tpu]" gcsfs
COPY . .
